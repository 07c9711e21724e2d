"""The least time that a file could take on a device: multiply-accumulates, bytes, and peaks."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
    tensor_dtype_to_np_dtype,
)
from onnx.numpy_helper import from_array
from torch import Tensor

from passfx.errors import ExportError
from passfx.export.arrays import Array, to_numpy
from passfx.export.onnx import graph_inputs, sizes
from passfx.graph.query import dtype_name
from passfx.runtime.options import Options
from passfx.runtime.session import Session
from passfx.target import CPU, TARGETS, Target

_REPEATS = 5
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")  # move nothing


@dataclass(frozen=True)
class Peaks:
    """What a device reached at best.

    Attributes:
        macs: multiply-accumulates per second of the best of matrix products and convolutions, in
            PyTorch and in ONNX Runtime; in float32 (TF32 on a GPU) and, on a GPU, float16.
        bandwidth: bytes per second, read and written, of the best of copies of any size: of what
            lies in a cache, that is the cache's.
    """

    macs: Mapping[str, float]
    bandwidth: float

    def raised(self, factor: float) -> "Peaks":
        """Peaks that something was seen to exceed, by this factor at most."""
        if factor <= 1:
            return self
        macs = {name: factor * rate for name, rate in self.macs.items()}
        return Peaks(macs, factor * self.bandwidth)


def measure_peaks(target: Target, number: int = 0) -> Peaks:
    """Time what comes nearest to a device's peaks: large products, convolutions, and copies.

    The CPU provider computes fp16 in float32.

    Args:
        target: whose device and provider are timed.
        number: of the GPU.
    """
    device = torch.device(target.device(number))
    dtypes = (torch.float32, torch.float16) if target.is_gpu else (torch.float32,)
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        macs = {dtype_name(dtype): _most_macs(target, device, dtype) for dtype in dtypes}
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    return Peaks(macs, max(_copy_rate(2**power, device) for power in range(14, 28, 2)))


def _most_macs(target: Target, device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a product and of a 3x3 convolution, in PyTorch and in ONNX Runtime."""
    size, batch = (8192, 32) if target.is_gpu else (1024, 1)
    square = torch.randn(size, size, device=device).to(dtype)
    image = torch.randn(batch, 128, 56, 56, device=device).to(dtype)
    kernel = torch.randn(128, 128, 3, 3, device=device).to(dtype)
    product, convolution = size**3, image.numel() * kernel[0].numel()

    def run(op_type: str, x: Tensor, weight: Tensor, **attributes: Any) -> Callable[[], object]:
        model = _one_operator(op_type, x, weight, **attributes)
        session = Session(model, Options(target.name), device=device.index or 0)
        return lambda: session.run([x])

    ways = (
        (product, lambda: square @ square),
        (product, run("MatMul", square, square)),
        (convolution, lambda: torch.conv2d(image, kernel, padding=1)),
        (convolution, run("Conv", image, kernel, pads=[1, 1, 1, 1])),
    )
    with torch.inference_mode():
        return max(macs / _best(function, device) for macs, function in ways)


def _one_operator(op_type: str, x: Tensor, weight: Tensor, **attributes: Any) -> bytes:
    """A model of one operator, x → y, with a constant weight."""
    array = to_numpy(weight)
    element_type = np_dtype_to_tensor_dtype(array.dtype)
    graph = make_graph(
        [make_node(op_type, ["x", "w"], ["y"], **attributes)],
        op_type,
        [make_tensor_value_info("x", element_type, x.shape)],
        [make_tensor_value_info("y", element_type, None)],
        [from_array(array, "w")],
    )
    opsets = [make_opsetid("", CPU.opset)]
    model = make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


def _copy_rate(elements: int, device: torch.device) -> float:
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    copies = max(1, 2**22 // elements)

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    return 2 * copies * source.nbytes / _best(copy, device)


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

    What gives its input another shape alone moves no bytes.

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
        if op_type in _VIEWS:
            continue
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
