"""`passfx verify`."""

from pathlib import Path

from passfx.cli.command import command
from passfx.cli.options import MODEL, NONFINITE, OUTPUT, RTOL, SOURCE
from passfx.cli.output import Output
from passfx.source.spec import SourceSpec


@command(spec=SOURCE, model=MODEL, rtol=RTOL, allow_nonfinite=NONFINITE, out=OUTPUT)
def verify(
    spec: SourceSpec, model: Path, rtol: float | None, allow_nonfinite: bool, out: Output
) -> None:
    """Prove an ONNX file against its SOURCE, whoever wrote it.

    Both run on the same samples, SOURCE in float64; the exit code is 1 where they disagree. Give
    the same --arg, --weights and --seed that the file was made with; sizes are those of the file,
    unless --input-shape says others.
    """
    from passfx.jobs import verify as job
    from passfx.report.console import print_verification

    with out.progress() as progress:
        report = job.verify(
            spec, model, rtol=rtol, allow_nonfinite=allow_nonfinite, progress=progress
        )
    out.write(report)
    print_verification(out.console, report)
