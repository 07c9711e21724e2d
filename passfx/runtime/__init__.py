"""Running ONNX files; the only room that imports onnxruntime."""

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passfx.errors import SourceError
from passfx.runtime.options import Options

if TYPE_CHECKING:
    from passfx.runtime.session import Session

__all__ = ["Options", "Session", "load"]


def load(model: str | PathLike[str], *, device: int = 0) -> "Session":
    """A session on a file, with what `passfx tune` found for it.

    The tuned options are those in "MODEL.passfx.json" beside the file. A file that was not tuned
    opens on the CPU with ONNX Runtime's own options, and a `UserWarning` says so.

    Args:
        model: the file; where tuning chose a variant of it, the variant is run.
        device: the number of the GPU.

    Raises:
        SourceError: the file does not exist, or changed since it was tuned.
        RuntimeUnavailableError: onnxruntime is not installed, or lacks the tuned provider.
    """
    from passfx.runtime.session import Session
    from passfx.runtime.sidecar import read_sidecar

    path = Path(model)
    if not path.is_file():
        raise SourceError(f"the file {path} does not exist")
    sidecar = read_sidecar(path)
    if sidecar is None:
        warnings.warn(
            f"{path} was not tuned, so it runs on the CPU with ONNX Runtime's own options; "
            f"`passfx tune {path}` finds better ones, passfx.runtime.Session takes others",
            stacklevel=2,
        )
        return Session(path, device=device)
    return Session(sidecar.model_path, sidecar.options, device=device)


def __getattr__(name: str) -> Any:
    if name != "Session":  # imported when used: it needs onnx
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from passfx.runtime.session import Session

    return Session
