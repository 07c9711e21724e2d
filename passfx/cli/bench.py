"""`passfx bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passfx.cli.command import ABOVE_ZERO, SOURCE, Group, command, option, without
from passfx.cli.options import (
    ARGUMENTS,
    RUNTIME,
    SEED,
    STRICT,
    TRUST,
    WEIGHTS,
    WEIGHTS_KEY,
    output,
    source_spec,
)
from passfx.cli.output import Output
from passfx.errors import SourceError
from passfx.export.settings import PRECISIONS

if TYPE_CHECKING:
    from passfx.jobs.bench import BenchSettings


_SOURCES = click.Argument(["sources"], nargs=-1, required=True, type=SOURCE,
    metavar="[SOURCE] [MODEL.onnx]...")  # fmt: skip
_SETTINGS = Group("passfx.jobs.bench:BenchSettings", (
    *RUNTIME,
    option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0],
        help="Of the file that passfx writes."),
    option("--seconds", type=ABOVE_ZERO, default=20, help="Of the race, for each batch size."),
    option("--tune-budget", type=click.FloatRange(min=0), default=30, metavar="SECONDS",
        help="Of tuning, for each batch size; 0 does not tune."),
    without("compile", "Leave torch.compile out."),
    SEED,
))  # fmt: skip
_OUTPUT = output("the figures", "the table and a plot")
_MODEL = Group(dict, (WEIGHTS, WEIGHTS_KEY, STRICT, TRUST))


@command(sources=_SOURCES, model=_MODEL, arguments=ARGUMENTS, settings=_SETTINGS, out=_OUTPUT)
def bench(
    sources: tuple[str, ...],
    model: dict[str, Any],
    arguments: tuple[str, ...],
    settings: "BenchSettings",
    out: Output,
) -> None:
    """Race the ways to run a model: PyTorch, torch.compile, a plain export, passfx, passfx tuned.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    ONNX files take part too, or race each other where there is no SOURCE; one that `passfx tune`
    knows runs tuned as well. All take turns in one run; beside each speed stands how far its
    result is from the model in float64.
    """
    from passfx.jobs import bench as job
    from passfx.report.console import print_bench

    files = [Path(item) for item in sources if item.endswith(".onnx")]
    models = [item for item in sources if not item.endswith(".onnx")]
    if len(models) > 1:
        raise SourceError(f"one SOURCE can be raced at a time, not {', '.join(models)}")
    if not models and (model["weights"] or arguments):
        raise SourceError("--weights and --arg are for a SOURCE, not for ONNX files")
    options = {**model, "input_shapes": settings.shapes, "seed": settings.seed}
    specs = [source_spec(arguments, (), source=text, **options) for text in models]
    with out.progress() as progress:
        report = job.bench(specs[0] if specs else None, files, settings, progress)
    out.write(report)
    print_bench(out.console, report)
