"""The least time that a file could take on a device: multiply-accumulates, bytes, and peaks."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.helper import tensor_dtype_to_np_dtype

from passfx.errors import ExportError
from passfx.export.arrays import Array
from passfx.export.onnx import graph_inputs, sizes
from passfx.graph.query import dtype_name
from passfx.target import TARGETS

_REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """What a device reached at best.

    Attributes:
        macs: multiply-accumulates per second of a large matrix product, in float32 (TF32 on a
            GPU) and, on a GPU, float16.
        bandwidth: bytes per second, read and written, of a large copy.
    """

    macs: Mapping[str, float]
    bandwidth: float


def measure_peaks(device: torch.device) -> Peaks:
    """Time a large matrix product and a large copy; the CPU provider computes fp16 in float32."""
    is_gpu = TARGETS[device.type].is_gpu
    size, elements = (8192, 2**29) if is_gpu else (2048, 2**25)
    dtypes = (torch.float32, torch.float16) if is_gpu else (torch.float32,)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        macs = {dtype_name(dtype): _product_rate(size, dtype, device) for dtype in dtypes}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return Peaks(macs, 2 * source.nbytes / _best(lambda: target.copy_(source), device))


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left = torch.randn(size, size, device=device).to(dtype)
    return size**3 / _best(lambda: left @ left, device)


def _best(function: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        function()
        if TARGETS[device.type].is_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def ideal_seconds(path: Path, shapes: Sequence[tuple[int, ...]], peaks: Peaks) -> float:
    """The sum over the operators of max(multiply-accumulates / peak, bytes / bandwidth).

    Args:
        path: an ONNX file.
        shapes: of its inputs, in order.
        peaks: of the device.

    Raises:
        ExportError: a shape inside the file cannot be inferred.
    """
    model = onnx.load(path)
    nodes = [(node.op_type, list(node.input), node.output[0]) for node in model.graph.node]
    tensors = _infer_tensors(model, shapes)
    seconds = 0.0
    for op_type, inputs, output in nodes:
        names = [name for name in (*inputs, output) if name]
        for name in names:
            if name not in tensors:
                raise ExportError(f"{path}: the shape of {name} cannot be inferred")
        *operands, result = (tensors[name] for name in names)
        peak = peaks.macs.get(result.dtype.name, peaks.macs["float32"])
        moved = sum(tensors[name].nbytes for name in names)
        seconds += max(_macs(op_type, operands, result) / peak, moved / peaks.bandwidth)
    return seconds


def _macs(op_type: str, operands: list[Array], output: Array) -> int:
    """As `passfx.analysis.cost.macs` counts them."""
    if op_type in ("Conv", "FusedConv", "ConvTranspose"):
        positions = operands[0] if op_type == "ConvTranspose" else output
        return positions.size * math.prod(operands[1].shape[1:])
    if op_type == "MatMul":
        return output.size * operands[0].shape[-1]
    if op_type == "Gemm":  # A is (M, K), or (K, M) where it is transposed: M is the output's
        return output.size * operands[0].size // output.shape[0]
    return 0


def _infer_tensors(model: onnx.ModelProto, shapes: Sequence[tuple[int, ...]]) -> dict[str, Array]:
    """Every tensor of a graph, without its memory.

    The graph is changed: FusedConv has no shape inference, Conv has.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type == "FusedConv":
            node.op_type, node.domain = "Conv", ""
            del node.input[3:]
            for item in [item for item in node.attribute if item.name.startswith("activation")]:
                node.attribute.remove(item)
    for item, shape in zip(graph_inputs(graph), shapes, strict=True):
        for size, dim in zip(shape, item.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size
    del graph.value_info[:]
    for item in graph.output:
        item.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = [(item.name, item.dims, item.data_type) for item in inferred.initializer]
    for item in (*inferred.input, *inferred.output, *inferred.value_info):
        kind = item.type.tensor_type
        if kind.HasField("shape"):
            found.append((item.name, sizes(item), kind.elem_type))
    return {
        name: np.broadcast_to(np.empty((), tensor_dtype_to_np_dtype(element_type)), tuple(shape))
        for name, shape, element_type in found
        if all(isinstance(size, int) for size in shape)
    }
