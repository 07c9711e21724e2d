"""`passfx inspect`."""

from typing import TYPE_CHECKING

from passfx.cli.command import command
from passfx.cli.options import OUTPUT, PROVEN_PLAN, SOURCE
from passfx.cli.output import Output
from passfx.source.spec import SourceSpec

if TYPE_CHECKING:
    from passfx.pipeline import Plan


@command(spec=SOURCE, plan=PROVEN_PLAN, out=OUTPUT)
def inspect(spec: SourceSpec, plan: "Plan", out: Output) -> None:
    """Show the shortcuts of SOURCE and what each pass does to it.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    Nothing is written but the files of --json and --report.
    """
    from passfx.jobs import inspect as job
    from passfx.report.console import print_inspection

    with out.progress() as progress:
        report = job.inspect(spec, plan, progress)
    out.write(report)
    print_inspection(out.console, report)
