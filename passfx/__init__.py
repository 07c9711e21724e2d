"""passfx: find the shortcuts of a PyTorch model, fold what is linear, prove it, write fast ONNX."""

from passfx import runtime
from passfx.analysis.shortcuts import Shortcut
from passfx.convert import convert
from passfx.errors import (
    CaptureError,
    ExportError,
    PassfxError,
    RuntimeUnavailableError,
    SourceError,
    VerificationError,
)
from passfx.optimized import Optimized, PassTransformer, find_shortcuts, optimize
from passfx.passes import PASSES, Pass
from passfx.report.model import Report
from passfx.version import __version__

__all__ = [
    "PASSES",
    "CaptureError",
    "ExportError",
    "Optimized",
    "Pass",
    "PassTransformer",
    "PassfxError",
    "Report",
    "RuntimeUnavailableError",
    "Shortcut",
    "SourceError",
    "VerificationError",
    "__version__",
    "convert",
    "find_shortcuts",
    "optimize",
    "runtime",
]
