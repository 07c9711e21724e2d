"""`passfx convert`."""

from pathlib import Path
from typing import TYPE_CHECKING

from passfx.cli.command import WRITTEN, command, option
from passfx.cli.options import EXPORT, OUTPUT, PLAN, SOURCE
from passfx.cli.output import Output
from passfx.export.settings import ExportSettings
from passfx.source.spec import SourceSpec

if TYPE_CHECKING:
    from passfx.pipeline import Plan

_OUTPUT = option("-o", "--output", type=WRITTEN, required=True, help="The file to write.")


@command(spec=SOURCE, output=_OUTPUT, settings=EXPORT, plan=PLAN, out=OUTPUT)
def convert(
    spec: SourceSpec, plan: "Plan", output: Path, settings: ExportSettings, out: Output
) -> None:
    """Convert SOURCE to an optimised ONNX file.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    The file is run under ONNX Runtime and compared with the model in float64; if it disagrees,
    the exit code is 1 and no file is written.
    """
    from passfx.jobs.convert import convert_source
    from passfx.report.console import print_conversion

    with out.progress() as progress:
        report = convert_source(spec, plan, output, settings, progress)
    out.write(report)
    print_conversion(out.console, report)
