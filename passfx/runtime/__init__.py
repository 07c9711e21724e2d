"""Running ONNX files; the only room that imports onnxruntime."""

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

    The tuned options are those in "MODEL.passfx.json" beside the file.

    Args:
        model: the file; where tuning chose a variant of it, the variant is run.
        device: the number of the GPU.

    Raises:
        SourceError: the file does not exist, was not tuned, or changed since.
        RuntimeUnavailableError: onnxruntime is not installed, or lacks the tuned provider.
    """
    from passfx.runtime.session import Session
    from passfx.runtime.sidecar import read_sidecar, sidecar_path

    path = Path(model)
    if not path.is_file():
        raise SourceError(f"the file {path} does not exist")
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise SourceError(
            f"{path} was not tuned: {sidecar_path(path)} does not exist; run `passfx tune {path}`, "
            "or open it with passfx.runtime.Session"
        )
    return Session(sidecar.model_path, sidecar.options, device=device)


def __getattr__(name: str) -> Any:
    if name != "Session":  # imported when used: it needs onnx
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from passfx.runtime.session import Session

    return Session
