"""`passfx inspect`."""

from pathlib import Path
from typing import Any

import click

from passfx.cli.options import (
    Output,
    load,
    output_options,
    pass_options,
    reports_errors,
    source_options,
)
from passfx.report.console import print_inspection


@click.command()
@source_options
@pass_options
@output_options
@reports_errors
def inspect(
    source: str, json_path: str | None, html_path: Path | None, quiet: bool, **options: Any
) -> None:
    """Show the shortcuts of SOURCE and what each pass does to it.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    Nothing is written but the files of --json and --report.
    """
    out = Output(json_path, html_path, quiet)
    with out.progress() as progress:
        optimized = load(source, progress=progress, **options)
    out.write(optimized.report)
    print_inspection(out.console, optimized.report)
