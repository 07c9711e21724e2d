"""`passfx verify`."""

from pathlib import Path
from typing import Any

import click

from passfx.cli.options import (
    Output,
    load,
    output_options,
    reports_errors,
    rtol_option,
    source_options,
)
from passfx.errors import ExportError
from passfx.prove import prove_file
from passfx.report.console import print_parity


@click.command()
@source_options
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@rtol_option
@output_options
@reports_errors
def verify(
    source: str,
    model: Path,
    rtol: float | None,
    seed: int,
    json_path: str | None,
    html_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Prove an ONNX file against its SOURCE, whoever wrote it.

    Both run on the same samples, SOURCE in float64; the exit code is 1 where they disagree. Give
    the same --arg, --weights and --seed that the file was made with.
    """
    out = Output(json_path, html_path, quiet)
    if not model.is_file():
        raise ExportError(f"the file {model} does not exist")
    with out.progress() as progress:
        optimized = load(source, seed=seed, only=("remove-unused",), progress=progress, **options)
        progress("verify")
        report = prove_file(optimized, model, rtol=rtol, seed=seed)
    out.write(report)
    print_parity(out.console, report)
