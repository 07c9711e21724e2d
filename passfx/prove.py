"""Prove an ONNX file against its model, whoever wrote it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from passfx.errors import ExportError
from passfx.graph.query import tensor
from passfx.optimized import DEFAULT_RTOL, HALVES, Optimized, check_parity, halved, timed
from passfx.report.model import OnnxReport, Report, TensorInfo


def prove_file(
    optimized: Optimized, path: Path, *, rtol: float | None = None, seed: int = 0
) -> Report:
    """Prove an ONNX file against a captured model; the report with `parity` and `onnx` filled in.

    A file in half precision of a model that is not is proven as `Optimized.export` proves it.

    Raises:
        ExportError: the file cannot be read, or its inputs or outputs are not the model's.
        VerificationError: it disagrees with the model.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    from passfx.export.onnx import summarize
    from passfx.runtime.parity import file_parity

    seconds = dict(optimized.report.seconds)
    opset, summary = summarize(path)
    precision = _file_precision(path, optimized)
    _check_signature(path, optimized.report, precision)
    rtol = DEFAULT_RTOL[precision] if rtol is None else rtol
    with timed(seconds, "verify"):
        proof = file_parity(optimized.captured, path, rtol=rtol, seed=seed, precision=precision)
    check_parity(proof)
    onnx = OnnxReport(str(path), *summary)
    return replace(
        optimized.report,
        opset=opset,
        precision=precision,
        parity=proof,
        onnx=onnx,
        seconds=seconds,
    )


def _file_precision(path: Path, optimized: Optimized) -> str:
    """The precision of a file's weights, as far as it is not the model's own."""
    from passfx.export.onnx import load_graph

    weights = load_graph(path).graph.initializer
    nodes = optimized.captured.graph_module.graph.nodes
    own = {
        str(item.dtype).removeprefix("torch.") for item in map(tensor, nodes) if item is not None
    }
    for precision, dtype in HALVES.items():
        if dtype not in own and any(_dtype_name(item.data_type) == dtype for item in weights):
            return precision
    return "fp32"


def _check_signature(path: Path, report: Report, precision: str) -> None:
    """Refuse a file whose inputs or outputs differ from the model's in number, dtype or shape."""
    from passfx.export.onnx import load_graph

    graph = load_graph(path).graph
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    for kind, own, given in (
        ("inputs", report.inputs, inputs),
        ("outputs", report.outputs, graph.output),
    ):
        found = list(map(_tensor_info, given))
        if len(found) != len(own) or not any(
            all(map(_agree, found, infos)) for infos in (own, halved(own, precision))
        ):
            raise ExportError(
                f"{path} has the {kind} {_listed(found)}, but the model has {_listed(own)}; "
                "give the options that it was made with"
            )


def _tensor_info(item: Any) -> TensorInfo:
    """An input or output of an ONNX graph; a size that is not known is "?"."""
    tensor_type = item.type.tensor_type
    sizes = [
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor_type.shape.dim
    ]
    return TensorInfo(item.name, _dtype_name(tensor_type.elem_type), tuple(sizes))


def _dtype_name(element_type: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name)


def _agree(found: TensorInfo, own: TensorInfo) -> bool:
    """Whether the file's tensor can be the model's; a named size may be any."""
    return (
        found.dtype == own.dtype
        and len(found.shape) == len(own.shape)
        and all(a == b or isinstance(a, str) for a, b in zip(found.shape, own.shape, strict=True))
    )


def _listed(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(
        f"{item.name} ({item.dtype} {'x'.join(map(str, item.shape)) or 'scalar'})" for item in infos
    )
