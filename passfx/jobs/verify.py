"""An ONNX file against its source, whoever wrote it."""

from dataclasses import replace
from pathlib import Path

from passfx.errors import ExportError
from passfx.files import is_file
from passfx.jobs.export import file_inputs
from passfx.jobs.optimize import capture_source
from passfx.pipeline import Progress, silent
from passfx.report.model import Report
from passfx.source.spec import SourceSpec


def verify(
    spec: SourceSpec,
    path: Path,
    *,
    rtol: float | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = silent,
) -> Report:
    """Capture a source, and nothing more, and prove a file against it.

    Where no input shapes are given, those of the file count.

    Raises:
        SourceError, CaptureError, ExportError, VerificationError, RuntimeUnavailableError: as
            `passfx.convert` and `Optimized.verify`.
    """
    if not is_file(path):
        raise ExportError(f"the file {path} does not exist")
    spec = replace(spec, file_inputs=file_inputs(path))
    found = capture_source(spec, progress=progress)
    progress("verify")
    return found.verify(path, rtol=rtol, seed=spec.seed, allow_nonfinite=allow_nonfinite)
