"""An ONNX file against the captured model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from passfx.capture import Captured
from passfx.errors import ExportError, RuntimeUnavailableError
from passfx.runtime.session import open_rounding_session, open_session
from passfx.verify import Parity, parity


def file_parity(
    captured: Captured, path: Path, *, rtol: float, seed: int = 0, precision: str = "fp32"
) -> Parity:
    """Run a file on the CPU on sample inputs and compare it with the captured model in float64.

    Args:
        precision: of the file: the results of "fp16" and "bf16" are rounded as a GPU rounds them.

    Raises:
        ExportError: ONNX Runtime does not run the file.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    with _running(path):
        session = open_session(path) if precision == "fp32" else open_rounding_session(path)

    def run(inputs: Sequence[Any]) -> list[torch.Tensor]:
        with _running(path):
            return session.run([item for item in inputs if isinstance(item, torch.Tensor)])

    return parity(captured, run, provider=session.provider, rtol=rtol, seed=seed)


@contextmanager
def _running(path: Path) -> Iterator[None]:
    """What ONNX Runtime raises is about the file."""
    try:
        yield
    except RuntimeUnavailableError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        raise ExportError(f"{path.name} does not run: {reason}") from error
