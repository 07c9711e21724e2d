"""Making a report in steps: of a captured model, of a rewritten one, of a file."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from passfx.analysis.cost import graph_cost
from passfx.analysis.shortcuts import find_shortcuts
from passfx.analysis.untrained import zero_layers
from passfx.capture.program import Captured
from passfx.errors import some
from passfx.export.settings import HALVES, ExportSettings
from passfx.graph.query import dtype_name, tensor, tensors
from passfx.graph.shapes import fixed
from passfx.record import OnnxReport, PassReport, TensorInfo
from passfx.report.model import Report
from passfx.source.spec import Source
from passfx.target import Target


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Set `seconds[stage]` to the block's wall time, and "total" to the sum of all stages."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
    seconds["total"] = sum(value for key, value in seconds.items() if key != "total")


def captured_report(
    source: Source, target: Target, captured: Captured, seconds: dict[str, float]
) -> Report:
    """The report of a model to which nothing was done yet."""
    cost = graph_cost(captured.graph_module)
    return Report(
        source=source.name,
        target=target.name,
        precision="fp32",
        inputs=_describe(captured.placeholders, captured.input_names, captured),
        outputs=_describe(captured.results, captured.output_names, captured),
        before=cost,
        after=cost,
        shortcuts=find_shortcuts(captured.graph_module),
        seconds=seconds,
        notes=(*source.notes, *_untrained(captured), *captured.notes),
        rules=captured.rules,
    )


def file_report(
    report: Report,
    settings: ExportSettings,
    passes: Sequence[PassReport],
    onnx: OnnxReport,
    seconds: dict[str, float],
) -> Report:
    """The report of a file that was written, by further passes, and not yet proven."""
    return replace(
        report,
        precision=settings.precision,
        inputs=_in_file(report.inputs, settings.input_names, settings),
        outputs=_in_file(report.outputs, settings.output_names, settings),
        passes=(*report.passes, *passes),
        parity=None,
        onnx=onnx,
        seconds=seconds,
    )


def halved(infos: tuple[TensorInfo, ...], precision: str) -> tuple[TensorInfo, ...]:
    """Inputs or outputs as `fp16_io` makes them."""
    half = HALVES.get(precision, "float32")
    return tuple(replace(info, dtype=half) if info.dtype == "float32" else info for info in infos)


def _untrained(captured: Captured) -> tuple[str, ...]:
    """The sentence about layers of zeros, if there are any."""
    zero = zero_layers(captured.graph_module.graph)
    if not zero:
        return ()
    have = "layer has" if len(zero) == 1 else "layers have"
    return (
        f"{len(zero)} {have} zero weights ({some(zero, 3)}); sizes and speeds below do not hold "
        "once it is trained",
    )


def _describe(nodes: list[Any], names: Sequence[str], captured: Captured) -> tuple[TensorInfo, ...]:
    def size_of(size: int | torch.SymInt) -> int | str:
        known = fixed(size)
        return captured.dim_name(str(size)) if known is None else known

    return tuple(
        TensorInfo(name, dtype_name(fake.dtype), tuple(map(size_of, fake.shape)))
        for name, fake in zip(names, tensors(map(tensor, nodes)), strict=True)
    )


def _in_file(
    infos: tuple[TensorInfo, ...], names: Sequence[str] | None, settings: ExportSettings
) -> tuple[TensorInfo, ...]:
    if names:
        infos = tuple(map(lambda info, name: replace(info, name=name), infos, names))
    return halved(infos, settings.precision) if settings.fp16_io else infos
