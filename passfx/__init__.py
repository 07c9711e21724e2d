"""passfx: find the shortcuts of a PyTorch model, fold what is linear, prove it, write fast ONNX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from passfx.errors import (
    CaptureError,
    ExportError,
    PassError,
    PassfxError,
    RuntimeUnavailableError,
    SourceError,
    VerificationError,
)
from passfx.version import __version__

if TYPE_CHECKING:
    from passfx import runtime
    from passfx.analysis.shortcuts import Shortcut
    from passfx.jobs.convert import convert
    from passfx.jobs.optimize import Optimized, PassTransformer, find_shortcuts, optimize
    from passfx.passes import PASSES, Pass
    from passfx.report.model import Report

__all__ = [
    "PASSES", "CaptureError", "ExportError", "Optimized", "Pass", "PassError", "PassTransformer",
    "PassfxError", "Report", "RuntimeUnavailableError", "Shortcut", "SourceError",
    "VerificationError", "__version__", "convert", "find_shortcuts", "optimize", "runtime",
]  # fmt: skip

# Where the names are that import torch; each is imported when it is first used.
_LATER = {
    "Optimized": "jobs.optimize",
    "PASSES": "passes",
    "Pass": "passes",
    "PassTransformer": "jobs.optimize",
    "Report": "report.model",
    "Shortcut": "analysis.shortcuts",
    "convert": "jobs.convert",
    "find_shortcuts": "jobs.optimize",
    "optimize": "jobs.optimize",
}


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return import_module("passfx.runtime")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"passfx.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
