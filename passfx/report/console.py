"""A report for people, in a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from passfx.report.bench import BenchReport, BenchRow
from passfx.report.model import Report

if TYPE_CHECKING:
    from passfx.runtime.tune import Tuned

_KEPT_LINES = 10
_CELLS = {
    **dict.fromkeys(("p50", "p90", "p99"), ".3f"),
    **{"throughput": ".1f", "speedup": ".2f", "roofline": ".0%", "rel_error": ".1e"},
}


def print_conversion(console: Console, report: Report) -> None:
    """The notes, the before/after table, the shortcuts, the file and its parity."""
    _print_notes(console, report)
    console.print(_cost_table(report))
    console.print(_shortcut_line(report))
    print_rules(console, report)
    for line in _refusal_lines(report):
        console.print(line)
    print_parity(console, report)
    stages = ", ".join(
        f"{name} {value:.1f}" for name, value in report.seconds.items() if name != "total" and value
    )
    console.print(f"Seconds      {report.seconds['total']:.1f} ({stages})")


def print_verification(console: Console, report: Report) -> None:
    """How far a file is from its model."""
    _print_notes(console, report)
    print_parity(console, report)


def print_parity(console: Console, report: Report) -> None:
    """How far the file is from the model, and what the file is."""
    if proof := report.parity:
        console.print(
            f"Parity       relative error {proof.rel_error:.1e} under {proof.provider}, "
            f"tolerated {proof.tolerance:.1e} "
            f"({proof.baseline} itself {proof.baseline_rel_error:.1e}, "
            f"max abs {proof.max_abs_error:.1e}, {proof.samples} samples)"
        )
        if proof.nonfinite:
            console.print(
                f"Not finite   {proof.nonfinite} elements of the model's own results; the file's "
                "are the same, which proves nothing of NaN"
            )
        if proof.doubt:
            console.print(f"Unproven     {proof.doubt}")
    if file := report.onnx:
        ops = ", ".join(f"{count} {name}" for name, count in file.ops.items())
        size = format_bytes(file.bytes)
        console.print(f"File         {file.path}, {size}, opset {file.opset}: {ops}")


def print_rules(console: Console, report: Report) -> None:
    """What must hold for the sizes that vary, a line each."""
    for rule in report.rules:
        console.print(f"{'Size':<13}{rule}")


def print_inspection(console: Console, report: Report) -> None:
    """Inputs and outputs, every shortcut, and what each pass rewrites or refuses."""
    for what, tensors in (("Input", report.inputs), ("Output", report.outputs)):
        for info in tensors:
            shape = " × ".join(map(str, info.shape)) or "scalar"
            console.print(f"{what:<13}{info.name}: {info.dtype} {shape}")
    print_rules(console, report)
    _print_notes(console, report)
    console.print(_cost_table(report))
    for item in report.shortcuts:
        place = _place(item.module, item.merge)
        state = ", collapsible" if item.collapsible else ""
        console.print(f"{item.kind} at {place}, {item.merge_op} from {item.fork}{state}")
        for what, names in (("path", item.path), ("body", item.body)):
            if names:
                shown = names if len(names) <= 8 else (names[0], "…", names[-1], f"({len(names)})")
                console.print(f"  {what}  {' '.join(shown)}")
    console.print(_shortcut_line(report))
    for run in report.passes:
        state = ", rolled back" if run.rolled_back else ""
        counts = f"{_count(run.rewrites, 'rewrite')}, {_count(run.refusals, 'refusal')}"
        console.print(f"{run.name}: {counts}{state}", style="bold")
        for rewrite in run.rewrites:
            error = "" if rewrite.error is None else f" (error {rewrite.error:.0e})"
            console.print(f"  {_place(rewrite.module, rewrite.at)}: {rewrite.what}{error}")
        for refusal in run.refusals:
            console.print(f"  {_place(refusal.module, refusal.at)}: refused, {refusal.reason}")


def _print_notes(console: Console, report: Report | BenchReport) -> None:
    for note in report.notes:
        console.print(f"Note         {note}")


def print_tuning(console: Console, tuned: "Tuned", written: Sequence[Path]) -> None:
    """Every combination that was measured or refused, and what was kept."""
    table = _table(f"Tuned on {tuned.sidecar.device}",
        "axis", "file, options", "batch", "median ms", "speed-up", "relative error")  # fmt: skip
    previous = None
    for row in tuned.results:
        cells = ["refused", "", str(row.refused)]
        if row.refused is None:
            cells = [f"{row.milliseconds:.3f}", f"{row.speedup:.2f}", f"{row.rel_error:.1e}"]
        is_kept = row.axis == "confirm" and row.candidate == str(tuned.chosen)
        axis, previous = "" if row.axis == previous else row.axis, row.axis
        style = "bold green" if is_kept else ""
        table.add_row(axis, row.candidate, str(row.batch), *cells, style=style)
    console.print(table)
    for axis in tuned.skipped:
        console.print(f"Skipped      {axis}: the budget was spent")
    gain = tuned.sidecar.speedup
    console.print(f"Kept         {tuned.chosen}: {gain:.2f} times as fast as an untuned session")
    console.print(f"Written      {', '.join(map(str, written))}")


def print_bench(console: Console, report: BenchReport) -> None:
    """The notes, and a row for each way to run the model, batch by batch."""
    _print_notes(console, report)
    table = _table(f"{report.source} on {report.device} ({report.provider})", "", "batch", "p50 ms",
        "p90", "p99", "samples/s", "speed-up", "of roofline", "relative error")  # fmt: skip
    for row in report.rows:
        cells = bench_cells(row) if row.failed is None else ["failed", *[""] * 5, row.failed]
        table.add_row(row.name, str(row.batch), *cells)
    console.print(table)
    peaks = ", ".join(
        f"{format_count(int(rate))}{'B' if name == 'bandwidth' else 'MAC'}/s {name}"
        for name, rate in report.peaks.items()
    )
    console.print(f"Speed-ups    over {report.baseline}; errors from {report.reference}")
    console.print(f"Peaks        {peaks}")
    console.print(f"Versions     {', '.join(map(' '.join, report.versions.items()))}")


def bench_cells(row: BenchRow) -> list[str]:
    """The figures of a row that did not fail."""
    return [format(getattr(row, name), spec) for name, spec in _CELLS.items()]


def format_bytes(count: int) -> str:
    """Bytes in decimal units: "44.7 MB"."""
    return format_count(count, "B", digits=1)


def format_count(count: int, unit: str = "", digits: int = 2) -> str:
    """A count to four digits: "11.69 M", "1.81 G"; of a unit, with `digits` decimals."""
    for factor, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count / factor:.{digits}f} {prefix}{unit}"
    return f"{count} {unit}".rstrip()


def _table(title: str, *headings: str) -> Table:
    texts = ("", "axis", "file, options")
    columns = [Column(name, justify="left" if name in texts else "right") for name in headings]
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def _cost_table(report: Report) -> Table:
    table = _table(report.source, "", "before", "after")
    before, after = report.before, report.after
    for name, old, new in (
        *report.operators,
        ("operators", before.nodes, after.nodes),
        (f"MACs, {report.counted_at}", format_count(before.macs), format_count(after.macs)),
        ("parameters", format_count(before.params), format_count(after.params)),
        ("weights", format_bytes(before.weight_bytes), format_bytes(after.weight_bytes)),
    ):
        table.add_row(name, str(old), Text(str(new), "bold green" if new != old else ""))
    return table


def _shortcut_line(report: Report) -> str:
    kinds = [item.kind for item in report.shortcuts]
    counts = (f"{kinds.count(kind)} {kind}" for kind in ("identity", "projection"))
    return f"Shortcuts    {', '.join(counts)}"


def _refusal_lines(report: Report) -> Iterator[str]:
    for run in report.passes:
        if run.rolled_back:
            yield f"Rolled back  {run.name}: {run.refusals[-1].reason}"
        undone = [item for item in run.refusals if item.undone]
        for item in undone:
            yield f"Undone       {run.name} at {_place(item.module, item.at)}: {item.reason}"
        refused = len(run.refusals) - len(undone)
        if run.name == "lower-precision":
            for item in run.refusals[:_KEPT_LINES]:
                yield f"Kept fp32    {_place(item.module, item.at)}: {item.reason}"
            if refused > _KEPT_LINES:
                yield f"             and {refused - _KEPT_LINES} more, all of them in --json"
        elif refused:
            yield f"Refused      {run.name}: {refused} (`passfx inspect` shows why)"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _place(module: str, node: str) -> str:
    return f"{module} ({node})" if module else node
