"""What the table of the zoo says of its records."""

from typing import Any

from tests.benchmarks.zoo.run import kept, run_one
from tests.benchmarks.zoo.table import groups, is_larger, markdown, summary


def record(name: str, mode: str, ours: int, **more: Any) -> dict[str, Any]:
    """A model that was converted, and is right unless told otherwise."""
    nodes = {"passfx": ours, "plain": 30}
    return {
        "name": f"timm:{name}", "mode": mode, "outcome": "right", "wall": 1.0, "nodes": nodes,
        "operators": [40, ours], "macs": [2_000_000, 1_000_000], "norms": [5, 0],
        "shortcuts": {"identity": 2}, "errors": {"1": 2e-7},
        "cpu_seconds": {"passfx": 4, "plain": 2}, **more,
    }  # fmt: skip


RECORDS = [
    record("a", "static", 20),
    record("a", "dynamic", 22),
    record("b", "static", 20, nodes={"passfx": 20, "plain": 30, "onnxsim": 19, "onnxslim": 25}),
    record("c", "static", 20, norms=[5, 2], norms_at={"MaxPool → BatchNormalization → Relu": 2}),
    {"name": "monai:d", "mode": "static", "outcome": "failed", "error": "a | b", "wall": 1.0},
    {"name": "monai:d", "mode": "dynamic", "outcome": "refused", "error": "fix it", "wall": 1.0},
]


def test_the_summary_has_five_lines() -> None:
    tried, outcomes, norms, nodes, seconds = summary(RECORDS).splitlines()
    assert "3 of 98 of timm, 1 of 4 of monai" in tried
    assert "static 4: 3 right, 0 refused, 1 failed; dynamic 2: 1 right, 1 refused" in outcomes
    assert "1 files (timm:c)" in norms
    assert "in 1 of 1 files (timm:b 20/19)" in nodes
    assert "more than 5 % in 1 of 1 (timm:a 1.10)" in nodes
    assert "median 2.0" in seconds


def test_a_row_says_what_is_not_as_it_should_be() -> None:
    rows = markdown(RECORDS).splitlines()
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    failed, refused, _, dynamic, _, left = rows[2:]
    assert "a \\| b" in failed
    assert "fix it" in refused
    assert "| 1.10 |" in dynamic
    assert "norms left: 2 MaxPool → BatchNormalization → Relu" in left


def test_failures_are_grouped_by_what_was_said() -> None:
    assert groups(RECORDS).splitlines()[0] == "- 1× failed: a | b"


def test_only_the_best_peer_counts() -> None:
    assert is_larger(RECORDS[2])
    assert not is_larger(RECORDS[0])


def test_the_later_record_is_kept(tmp_path: Any) -> None:
    path = tmp_path / "zoo.jsonl"
    assert kept(path) == []
    path.write_text(
        '{"name": "a", "mode": "static", "n": 1}\n{"name": "a", "mode": "static", "n": 2}\n'
    )
    assert [item["n"] for item in kept(path)] == [2]


class Stuck:
    """A process that never ends by itself, in a context that makes it."""

    exitcode = None

    def Process(self, target: Any, args: tuple[Any, ...]) -> "Stuck":
        return self

    def start(self) -> None:
        self.alive = True

    def join(self, limit: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.alive = False


def test_what_takes_too_long_is_ended_and_failed() -> None:
    stuck = Stuck()
    found = run_one(stuck, "timm:a", "static", 5)
    assert not stuck.alive
    assert (found["outcome"], found["error"]) == ("failed", "more than 5 s in: start")
