"""Run an ONNX file on torch tensors."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from passfx.errors import RuntimeUnavailableError, SourceError, named_line
from passfx.export.arrays import Array, to_torch
from passfx.files import is_file
from passfx.graph.query import dtype_name
from passfx.runtime.options import Options

# What torch and ONNX Runtime exchange, by ONNX Runtime's names.
_DTYPES = {
    f"tensor({from_torch_dtype(dtype).name.lower()})": dtype
    for dtype in (
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8,
        torch.int8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip
Inputs = Tensor | Array | Sequence[Tensor | Array] | Mapping[str, Tensor | Array]
_NO_GRAPH = "-1"  # the gpu_graph_id of a run that is neither recorded nor replayed


@dataclass(frozen=True)
class Port:
    """An input or output of a file; a size that may vary is its name, or None where it has none."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str | None, ...]

    def check(self, given: Tensor) -> None:
        """Raise ValueError where a tensor differs in dtype or in a size that is fixed."""
        fits = given.dtype == self.dtype and len(given.shape) == len(self.shape)
        for size, wanted in zip(given.shape, self.shape, strict=False):
            fits &= size == wanted or not isinstance(wanted, int)
        if not fits:
            raise ValueError(f"{self}, not {_described(given.dtype, given.shape)}")

    def __str__(self) -> str:
        return f"{self.name} is {_described(self.dtype, self.shape)}"


def _described(dtype: torch.dtype, shape: Sequence[int | str | None]) -> str:
    sizes = "x".join("?" if size is None else str(size) for size in shape)
    return f"{dtype_name(dtype)} {sizes or 'scalar'}"


class Session:
    """An `onnxruntime.InferenceSession` that takes and gives torch tensors without a copy.

    `session.run(x)`, `run([x, y])` and `run({"x": x, "y": y})` take tensors and numpy arrays alike.

    Tensors are bound where they lie. On a GPU, an input that lies in the host's memory goes there
    through a pinned buffer; outputs lie on the provider's device. Every `run` returns when its
    outputs are there, and they are the caller's to keep.

    With `Options.cuda_graph` the launches of each combination of input shapes are recorded at its
    first run and replayed from then on; inputs are copied into the buffers that were recorded, and
    outputs out of them.

    Attributes:
        provider: the execution provider that runs it, such as "CUDAExecutionProvider".
        options: what it was opened with.
        inputs, outputs: the ports of the file, in its order.

    Args:
        model: a path, or a serialized model.
        options: by default those of an untuned session on the CPU.
        device: the number of the GPU.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed, or it would not use the provider.
        SourceError: the file does not exist, ONNX Runtime does not open it, or an input or output
            is no tensor of torch's types.
    """

    def __init__(
        self, model: str | PathLike[str] | bytes, options: Options | None = None, *, device: int = 0
    ) -> None:
        onnxruntime = require_onnxruntime()
        self.options = options or Options()
        target = self.options.target
        self.provider = target.provider
        if not isinstance(model, bytes) and not is_file(Path(model)):
            raise SourceError(f"the file {model} does not exist")
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise RuntimeUnavailableError(
                f"this ONNX Runtime has no {self.provider} (it has {', '.join(available)}); for "
                "NVIDIA GPUs uninstall onnxruntime and pip install 'passfx[gpu]'"
            )
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                self.options.session_options(onnxruntime),
                providers=[(self.provider, self.options.provider_options(device))],
                enable_fallback=0,  # which would print that it tries the same again
            )
        except Exception as error:  # ONNX Runtime has no class of errors of its own
            name = "the model" if isinstance(model, bytes) else model
            message = f"ONNX Runtime does not open {name}: {named_line(error)}"
            raise SourceError(message) from error
        used = self._session.get_providers()
        if used[0] != self.provider:
            raise RuntimeUnavailableError(
                f"{self.provider} was asked for, but ONNX Runtime uses {used[0]}; "
                "`passfx doctor` shows what is installed"
            )
        self._run_options = onnxruntime.RunOptions
        self.inputs = tuple(map(_port, self._session.get_inputs()))
        self.outputs = tuple(map(_port, self._session.get_outputs()))
        self.device = torch.device(target.device(device))
        self._is_gpu = target.is_gpu
        self._pinned: dict[tuple[str, torch.Size], Tensor] = {}
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}
        self._lock = threading.Lock()  # around the buffers that runs share

    def run(self, inputs: Inputs) -> list[Tensor]:
        """Run the model: one tensor or array for each input, to one tensor for each output.

        Args:
            inputs: torch tensors or numpy arrays, of the dtypes and shapes of `self.inputs`: all
                of them in that order, or by name, or the only one as it is. Arrays are not copied
                either, where they are contiguous and can be written to.

        Raises:
            ValueError: an input differs in number, name, kind, dtype or shape.
        """
        given = self._ordered(inputs)
        for port, item in zip(self.inputs, given, strict=True):
            port.check(item)
        if not self._is_gpu:
            return self._run(given)
        with self._lock:
            placed = list(map(self._place, self.inputs, given))
            return self._replay(placed) if self.options.cuda_graph else self._run(placed)

    def _ordered(self, inputs: Inputs) -> list[Tensor]:
        """The inputs as tensors, in the order of the file."""
        names = [port.name for port in self.inputs]
        if isinstance(inputs, Tensor | np.ndarray):
            inputs = [inputs]
        elif isinstance(inputs, Mapping):
            if inputs.keys() != set(names):
                given = ", ".join(map(str, inputs)) or "none"
                raise ValueError(f"the model takes {', '.join(names)}, not {given}")
            inputs = [inputs[name] for name in names]
        if len(inputs) != len(names):
            raise ValueError(f"the model takes {len(names)} input(s), not {len(inputs)}")
        return list(map(_as_tensor, names, inputs))

    def _run(self, inputs: list[Tensor], graph: str | None = None) -> list[Tensor]:
        """Run on tensors of the session's device; outputs are allocated by ONNX Runtime."""
        binding = self._session.io_binding()
        ready = self._bind_inputs(binding, inputs)
        for port in self.outputs:
            binding.bind_output(port.name, self.device.type, self.device.index or 0)
        self._execute(binding, graph)
        del ready
        return [
            from_dlpack(value).to(port.dtype)
            for port, value in zip(self.outputs, binding.get_outputs(), strict=True)
        ]

    def _replay(self, inputs: list[Tensor]) -> list[Tensor]:
        shapes = tuple(item.shape for item in inputs)
        if shapes not in self._recorded:
            outputs = [torch.empty_like(item) for item in self._run(inputs, _NO_GRAPH)]
            binding = self._session.io_binding()
            kept = self._bind_inputs(binding, [item.clone() for item in inputs])
            for port, item in zip(self.outputs, outputs, strict=True):
                binding.bind_output(*_bound(port, item))
            graph = str(len(self._recorded))
            self._recorded[shapes] = _Recorded(graph, binding, kept, outputs)
        recorded = self._recorded[shapes]
        for buffer, item in zip(recorded.inputs, inputs, strict=True):
            buffer.copy_(item)
        self._execute(recorded.binding, recorded.graph)
        return [item.clone() for item in recorded.outputs]

    def _bind_inputs(self, binding: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Bind tensors where they lie; the result must live until the run is over."""
        ready = [item.detach().contiguous() for item in inputs]
        for port, item in zip(self.inputs, ready, strict=True):
            binding.bind_input(*_bound(port, item))
        return ready

    def _execute(self, binding: Any, graph: str | None) -> None:
        if self._is_gpu:  # ONNX Runtime has a stream of its own, and waits for it
            torch.cuda.current_stream(self.device).synchronize()
        run_options = None
        if graph is not None:
            run_options = self._run_options()
            run_options.add_run_config_entry("gpu_graph_id", graph)
        self._session.run_with_iobinding(binding, run_options)

    def _place(self, port: Port, item: Tensor) -> Tensor:
        """A tensor on the session's GPU."""
        if item.is_cpu and not item.is_pinned():
            key = port.name, item.shape
            if key not in self._pinned:
                self._pinned[key] = torch.empty_like(item, pin_memory=True)
            item = self._pinned[key].copy_(item)
        return item.to(self.device, non_blocking=item.is_cpu)


@dataclass(frozen=True)
class _Recorded:
    """A recorded CUDA graph and the buffers that it reads and writes."""

    graph: str
    binding: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


def _bound(port: Port, item: Tensor) -> tuple[str, str, int, int, tuple[int, ...], int]:
    """What `IOBinding` wants to know: name, device and its number, element type, shape, address."""
    element_type, place = int(from_torch_dtype(port.dtype)), item.device
    shape = tuple(item.shape)
    return port.name, place.type, place.index or 0, element_type, shape, item.data_ptr()


def _as_tensor(name: str, item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, np.ndarray):
        raise ValueError(
            f"{name} is given as {type(item).__name__}; give a torch tensor or a numpy array"
        )
    try:
        return to_torch(item, copy=False)
    except TypeError as error:
        raise ValueError(f"{name} is given as {item.dtype}, which torch does not have") from error


def _port(item: Any) -> Port:
    dtype = _DTYPES.get(item.type)
    if dtype is None:
        raise SourceError(f"{item.name} is {item.type}, for which torch has no tensor")
    return Port(item.name, dtype, tuple(item.shape))


def require_onnxruntime(instead: str | None = None) -> Any:
    """The `onnxruntime` module.

    Args:
        instead: what to do without it.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError(
            "ONNX Runtime is not installed; install it with pip install 'passfx[cpu]' or, for "
            f"NVIDIA GPUs, 'passfx[gpu]'{f', or {instead}' if instead else ''}"
        ) from error
    return onnxruntime
