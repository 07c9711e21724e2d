"""An optimised model as a proven file, and the proof of a file that somebody else wrote."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch.fx import GraphModule

from passfx.capture.program import Captured
from passfx.errors import ExportError
from passfx.export.base import FilePass
from passfx.export.calibration import calibration_samples
from passfx.export.epilogue import FuseEpilogues
from passfx.export.onnx import export_onnx, graph_inputs, load_graph, sizes, staged, summarize
from passfx.export.precision import LowerPrecision
from passfx.export.settings import HALVES, OPSETS, ExportSettings
from passfx.files import writing
from passfx.graph.query import dtype_name, tensor
from passfx.pipeline import Progress, silent
from passfx.record import TensorInfo
from passfx.report.build import file_report, halved, timed
from passfx.report.model import Report
from passfx.runtime.reference import file_parity, run_model
from passfx.runtime.session import require_onnxruntime
from passfx.target import Target, find_target


def export_file(
    module: GraphModule,
    captured: Captured,
    report: Report,
    path: Path,
    settings: ExportSettings,
    progress: Progress = silent,
) -> Report:
    """Write a rewritten graph, and prove the file before it takes its place.

    `report` is that of the graph; `Optimized.export` says more.
    """
    target = find_target(report.target)
    settings.check(path, target)
    settings.check_rules(captured.rules)
    if settings.precision != "fp32":
        require_onnxruntime()
    elif settings.verify:
        require_onnxruntime("pass --no-verify (verify=False)")
    seconds = dict(report.seconds)
    progress("export")
    with writing(path), ExitStack() as stack:
        with timed(seconds, "export"):
            model = export_onnx(module, captured, settings)
            passes = [item.run(model) for item in _file_passes(model, captured, settings, target)]
            written, summary = stack.enter_context(staged(model, path))
        report = file_report(report, settings, passes, summary, seconds)
        if settings.verify:
            progress("verify")
            report = _proven(report, captured, written, settings)
    return report


def _file_passes(
    model: ir.Model, captured: Captured, settings: ExportSettings, target: Target
) -> list[FilePass]:
    passes: list[FilePass] = []
    if settings.precision != "fp32":
        names = [str(item.name) for item in model.graph.inputs]
        samples = calibration_samples(captured, names, settings.calibration, settings.seed)
        half, accuracy = settings.fp16_io, settings.accuracy
        lower = LowerPrecision(settings.precision, samples, run_model, target, half, accuracy)
        passes.append(lower)
    if settings.fuses_epilogues(target):
        passes.append(FuseEpilogues())
    return passes


def verify_file(captured: Captured, report: Report, path: Path, settings: ExportSettings) -> Report:
    """Prove a file against a captured model; `Optimized.verify` says more.

    Of the settings those of the proof count; precision and opset are the file's own.
    """
    summary = summarize(path)
    precision = _file_precision(path, captured)
    _check_signature(path, report, precision)
    report = replace(report, precision=precision, onnx=summary)
    settings = replace(settings, precision=precision)
    if summary.opset is not None and summary.opset in OPSETS:
        settings = replace(settings, opset=summary.opset)
    return _proven(report, captured, path, settings)


def _proven(report: Report, captured: Captured, path: Path, settings: ExportSettings) -> Report:
    """The report with the proof of a file, which must hold."""
    seconds = dict(report.seconds)
    with timed(seconds, "verify"):
        proof = file_parity(captured, path, settings).checked()
    return replace(report, parity=proof, seconds=seconds)


def _file_precision(path: Path, captured: Captured) -> str:
    """The precision of a file's weights, as far as it is not the model's own."""
    weights = {_dtype(item.data_type) for item in load_graph(path).graph.initializer}
    fakes = map(tensor, captured.graph_module.graph.nodes)
    own = {dtype_name(fake.dtype) for fake in fakes if fake is not None}
    return next((name for name, dtype in HALVES.items() if dtype in weights - own), "fp32")


def _check_signature(path: Path, report: Report, precision: str) -> None:
    """Refuse a file whose inputs or outputs differ from the model's in number, dtype or shape."""
    graph = load_graph(path).graph
    for kind, own, given in (
        ("inputs", report.inputs, graph_inputs(graph)),
        ("outputs", report.outputs, graph.output),
    ):
        found = list(map(_tensor_info, given))
        if len(found) != len(own) or not any(
            all(map(_agree, found, infos)) for infos in (own, halved(own, precision))
        ):
            theirs, ours = (", ".join(map(str, infos)) for infos in (found, own))
            raise ExportError(
                f"{path} has the {kind} {theirs}, but the model has {ours}; give the options that "
                "it was made with"
            )


def file_inputs(path: Path) -> tuple[TensorInfo, ...]:
    """The inputs of a file.

    Raises:
        ExportError: it is no ONNX file.
    """
    return tuple(map(_tensor_info, graph_inputs(load_graph(path).graph)))


def _tensor_info(item: Any) -> TensorInfo:
    """An input or output of an ONNX graph; a size that is not known is "?"."""
    shape = tuple("?" if size is None else size for size in sizes(item))
    return TensorInfo(item.name, _dtype(item.type.tensor_type.elem_type), shape)


def _dtype(element_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name)


def _agree(found: TensorInfo, own: TensorInfo) -> bool:
    """Whether the file's tensor can be the model's; a named size may be any."""
    return (
        found.dtype == own.dtype
        and len(found.shape) == len(own.shape)
        and all(a == b or isinstance(a, str) for a, b in zip(found.shape, own.shape, strict=True))
    )
