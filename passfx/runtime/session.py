"""Run an ONNX file on torch tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from passfx.errors import RuntimeUnavailableError


class Session(Protocol):
    """Something that runs a model: flat input tensors → flat output tensors."""

    provider: str

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the model, in the order of the file."""


def require_onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError(
            "ONNX Runtime is not installed, so the file cannot be verified; install it with "
            "pip install 'passfx[cpu]' or, for NVIDIA GPUs, 'passfx[gpu]', "
            "or pass --no-verify (verify=False)"
        ) from error
    return onnxruntime


def open_session(path: Path) -> Session:
    """A session on the CPU provider, or on onnx's reference evaluator where it lacks a kernel.

    ONNX Runtime has no CPU kernels for, among others, convolutions in float64 and bfloat16, and it
    exchanges no bfloat16 with numpy.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) and "NotImplemented" not in type(error).__name__:
            raise
        return _ReferenceSession(path)
    ends = [*session.get_inputs(), *session.get_outputs()]
    if any(item.type == "tensor(bfloat16)" for item in ends):
        return _ReferenceSession(path)
    return _OrtSession(session)


class _OrtSession:
    provider = "CPUExecutionProvider"

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [item.name for item in session.get_inputs()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = dict(zip(self._names, map(_to_numpy, inputs), strict=True))
        return [_to_torch(item) for item in self._session.run(None, feeds)]


class _ReferenceSession:
    provider = "onnx.reference"

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self._evaluator = ReferenceEvaluator(model)
        self._names = [item.name for item in model.graph.input]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = dict(zip(self._names, map(_to_numpy, inputs), strict=True))
        return [_to_torch(item) for item in self._evaluator.run(None, feeds)]


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_torch(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
