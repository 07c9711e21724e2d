"""What a file gives on the CPU: as the reference of others, and against the captured model."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from passfx.capture.program import Captured
from passfx.errors import ExportError, RuntimeUnavailableError, SourceError, named_line
from passfx.export.arrays import Array, to_numpy, to_torch
from passfx.export.onnx import export_onnx, graph_inputs
from passfx.export.rounding import emulated
from passfx.export.settings import HALVES, ExportSettings
from passfx.graph.query import tensors
from passfx.runtime.options import Options
from passfx.runtime.session import Inputs, Session, require_onnxruntime
from passfx.verify.parity import Parity, Program, parity


class Runner(Protocol):
    """Something that runs a model: flat input tensors → flat output tensors.

    It is a `Session`, or one of the two below.
    """

    provider: str

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the model, in the order of the file."""


class _ReferenceSession:
    """A file under onnx's reference evaluator, which is slow and knows every operator."""

    provider = "onnx.reference"

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self._evaluator = ReferenceEvaluator(model)
        self._names = [item.name for item in graph_inputs(model.graph)]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = dict(zip(self._names, map(to_numpy, inputs), strict=True))
        return [to_torch(item) for item in self._evaluator.run(None, feeds)]


class _RoundingSession(Session):
    """A session on the CPU in which every result of half precision is rounded, as on a GPU.

    The CPU provider computes half precision in float32 and leaves out the rounding between two
    operators, so that neither their loss nor an overflow would show.
    """

    def __init__(self, path: Path) -> None:
        with _saved(emulated(ir.load(path))) as rounding:
            super().__init__(rounding)
        self.provider += ", results rounded to half precision"

    def _ordered(self, inputs: Inputs) -> list[Tensor]:
        given = zip(self.inputs, super()._ordered(inputs), strict=True)
        return [x.to(port.dtype) if x.is_floating_point() else x for port, x in given]


def open_session(path: Path) -> Runner:
    """A session on the CPU provider, or on onnx's reference evaluator where it lacks a kernel.

    ONNX Runtime has no CPU kernels for, among others, convolutions in float64 and bfloat16.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    try:
        return Session(path)
    except SourceError as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        return _ReferenceSession(path)


def run_model(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """Run a model in memory on samples, inputs by name, on the CPU without graph optimisation.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    onnxruntime, options = require_onnxruntime(), Options()
    told = options.session_options(onnxruntime)
    told.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = [options.target.provider]
    with _saved(model) as path:
        session = onnxruntime.InferenceSession(str(path), told, providers=providers)
    return [session.run(None, dict(sample)) for sample in samples]


def file_parity(captured: Captured, path: Path, settings: ExportSettings) -> Parity:
    """Run a file on the CPU on sample inputs and compare it with the captured model in float64.

    Where the file is further off than PyTorch's own rounding excuses, the captured graph is written
    as it is and run in the same way, and its error counts too. Not so in half precision, whose
    rounding is ours, and whose tolerance covers what a runtime approximates.

    Args:
        settings: of the file: the results of "fp16" and "bf16" are rounded as a GPU rounds them.

    Raises:
        ExportError: ONNX Runtime does not run the file.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    half = HALVES.get(settings.precision)
    with _running(path):
        session = _RoundingSession(path) if half else open_session(path)

    def run(inputs: Sequence[Any]) -> list[Tensor]:
        with _running(path):
            return session.run(tensors(inputs))

    return parity(
        captured,
        run,
        provider=session.provider,
        rtol=settings.tolerance,
        seed=settings.seed,
        half=getattr(torch, half) if half else None,
        unrewritten=lambda: None if half else _unrewritten(captured, settings.opset),
        allow_nonfinite=settings.allow_nonfinite,
    )


def _unrewritten(captured: Captured, opset: int) -> Program | None:
    """The captured graph under the runtime of its file, or None where it does not run there."""
    try:
        plain = export_onnx(captured.graph_module, captured, ExportSettings(opset=opset))
        with _saved(plain) as path:
            session = open_session(path)
    except (ExportError, SourceError):
        return None
    return lambda inputs: session.run(tensors(inputs))


@contextmanager
def _saved(model: ir.Model) -> Iterator[Path]:
    """A model as a file, which may be deleted once a session has read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="weights")
        yield path


@contextmanager
def _running(path: Path) -> Iterator[None]:
    """What ONNX Runtime raises is about the file."""
    try:
        yield
    except RuntimeUnavailableError:
        raise
    except Exception as error:
        told = f"{path.name} does not run: {named_line(error.__cause__ or error)}"
        raise ExportError(told) from error
