"""Records as a markdown table, and what they say in five lines."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from passfx.report.console import format_count
from tests.benchmarks.zoo.cases import all_cases

Record = dict[str, Any]

HEAD = (
    *("model", "batch", "outcome", "shortcuts", "operators", "MACs", "norms left", "nodes"),
    *("plain", "onnxsim", "onnxslim", "dynamic / static", "error, batch 1", "batch 3"),
    *("processor seconds", "plain", "remarks"),
)
COSTS = 1.05  # nodes of a file with a dynamic batch, over those of the static one


def markdown(records: Sequence[Record]) -> str:
    """One row a model and mode, in the order of the names."""
    ordered = sorted(records, key=lambda item: (item["name"], item["mode"] == "dynamic"))
    static = _nodes_of(records, "static")
    rows = [HEAD, ("---",) * len(HEAD), *(_row(item, static) for item in ordered)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(record: Record, static: dict[str, int]) -> tuple[str, ...]:
    found = Counter(record.get("shortcuts", {}))
    nodes, seconds = record.get("nodes", {}), record.get("cpu_seconds", {})
    ours, base = nodes.get("passfx"), static.get(record["name"])
    errors = record.get("errors", {}) if "passfx" in nodes else {}
    is_dynamic = record["mode"] == "dynamic"
    return (
        record["name"],
        record["mode"],
        record["outcome"],
        f"{found['identity']} + {found['projection']}" if "shortcuts" in record else "",
        _change(record, "operators", str),
        _change(record, "macs", format_count),
        str(record["norms"][1]) if "norms" in record else "",
        *(str(nodes.get(name, "")) for name in ("passfx", "plain", "onnxsim", "onnxslim")),
        f"{ours / base:.2f}" if is_dynamic and ours and base else "",
        *(f"{errors[batch]:.1e}" if batch in errors else "" for batch in ("1", "3")),
        *(f"{seconds[name]:.0f}" if name in seconds else "" for name in ("passfx", "plain")),
        _remarks(record).replace("|", "\\|").replace("\n", " "),
    )


def _change(record: Record, key: str, form: Callable[[int], str]) -> str:
    return " → ".join(map(form, record[key])) if key in record else ""


def _remarks(record: Record) -> str:
    """Why something is not as it should be."""
    found = [record["error"]] if record.get("error") else []
    if record.get("plain"):
        found.append(f"plain export: {record['plain']}")
    left = record.get("norms", (0, 0))[1]
    if left:
        places = record.get("norms_at", {})
        found.append("norms left: " + "; ".join(f"{count} {at}" for at, count in places.items()))
        found += record.get("why", [])[:2]
    if record.get("rolled_back"):
        found.append(f"rolled back: {', '.join(record['rolled_back'])}")
    if record.get("undone"):
        found.append(f"{len(record['undone'])} rewrites undone")
    if record.get("warnings"):
        found.append(f"ONNX Runtime warned {record['warnings']} times")
    if record.get("constant"):
        found.append("its output does not change with its input")
    if record.get("reference") == "float32":
        found.append("reference in float32")
    if record.get("peers"):
        found.append(record["peers"])
    return ". ".join(item[:240] for item in found)


def best_peer(record: Record) -> int | None:
    """The fewest nodes that another tool leaves of the plain file."""
    nodes = record.get("nodes", {})
    return min((nodes[key] for key in ("onnxsim", "onnxslim") if key in nodes), default=None)


def is_larger(record: Record) -> bool:
    """Whether the file has more nodes than the best peer's."""
    ours, best = record.get("nodes", {}).get("passfx"), best_peer(record)
    return ours is not None and best is not None and ours > best


def summary(records: Sequence[Record]) -> str:
    """What was tried, what became of it, norms, nodes, and time: a line each."""
    static = _nodes_of(records, "static")
    pairs = {
        name: nodes / static[name]
        for name, nodes in _nodes_of(records, "dynamic").items()
        if name in static
    }
    costly = [f"{name} {ratio:.2f}" for name, ratio in pairs.items() if ratio > COSTS]
    norms = [item for item in records if item.get("norms", (0, 0))[1]]
    larger = [
        f"{item['name']} {item['nodes']['passfx']}/{best_peer(item)}"
        for item in filter(is_larger, records)
    ]
    compared = sum(best_peer(item) is not None and "passfx" in item["nodes"] for item in records)
    done = [item for item in records if item["outcome"] == "right"]
    ratios = sorted(
        item["cpu_seconds"]["passfx"] / item["cpu_seconds"]["plain"]
        for item in done
        if {"passfx", "plain"} <= item.get("cpu_seconds", {}).keys()
    )
    lines = (
        f"Models tried: {_by_package(records)}; each with random norms, biases and layer scales.",
        "Outcomes: " + "; ".join(_outcomes(records, mode) for mode in ("static", "dynamic")) + ".",
        f"Batch norms left: {len(norms)} files{_names(item['name'] for item in norms)}.",
        f"Nodes: more than the best of onnxsim and onnxslim in {len(larger)} of {compared} files"
        f"{_names(larger)}; a dynamic batch costs more than 5 % in {len(costly)} of {len(pairs)}"
        f"{_names(costly)}.",
        "Processor time, proofs included, over plain export: "
        + (
            f"median {ratios[len(ratios) // 2]:.1f}, at most {ratios[-1]:.1f}, {len(ratios)} files."
            if ratios
            else "not measured."
        ),
    )
    return "\n".join(f"- {line}" for line in lines)


def groups(records: Sequence[Record]) -> str:
    """What was not right, by what was said of it."""
    found: dict[str, list[str]] = {}
    for item in records:
        if item["outcome"] != "right":
            key = f"{item['outcome']}: {item.get('error', '')[:160]}"
            found.setdefault(key, []).append(f"{item['name']} ({item['mode']})")
    ordered = sorted(found.items(), key=lambda pair: -len(pair[1]))
    return "\n".join(f"- {len(names)}× {key}\n  {', '.join(names)}" for key, names in ordered)


def _nodes_of(records: Sequence[Record], mode: str) -> dict[str, int]:
    return {
        item["name"]: item["nodes"]["passfx"]
        for item in records
        if item["mode"] == mode and "passfx" in item.get("nodes", {})
    }


def _by_package(records: Sequence[Record]) -> str:
    tried, there = (
        Counter(name.partition(":")[0] for name in names)
        for names in ({item["name"] for item in records}, [case.name for case in all_cases()])
    )
    said = (f"{count} of {there[name]} of {name}" for name, count in tried.most_common())
    return ", ".join(said)


def _outcomes(records: Sequence[Record], mode: str) -> str:
    found = Counter(item["outcome"] for item in records if item["mode"] == mode)
    said = ", ".join(f"{found[key]} {key}" for key in ("right", "refused", "failed"))
    return f"{mode} {found.total()}: {said}"


def _names(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return f" ({', '.join(listed[:most])}{more})" if listed else ""
