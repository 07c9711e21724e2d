"""`passfx bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passfx.cli.command import ABOVE_ZERO, Group, command, option
from passfx.cli.options import ARGUMENTS, RUNTIME, SEED, WEIGHTS, output
from passfx.cli.output import Output
from passfx.errors import SourceError
from passfx.export.settings import PRECISIONS
from passfx.source.spec import SourceSpec

if TYPE_CHECKING:
    from passfx.jobs.bench import BenchSettings


def _settings(no_compile: bool, **given: Any) -> "BenchSettings":
    from passfx.jobs.bench import BenchSettings

    return BenchSettings(compile=not no_compile, **given)


_SOURCES = click.Argument(["sources"], nargs=-1, required=True, metavar="[SOURCE] [MODEL.onnx]...")
_SETTINGS = Group(
    _settings,
    (
        *RUNTIME,
        option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0],
            help="Of the file that passfx writes."),
        option("--seconds", type=ABOVE_ZERO, default=20, help="Of the race, for each batch size."),
        option("--tune-budget", type=click.FloatRange(min=0), default=30, metavar="SECONDS",
            help="Of tuning, for each batch size; 0 does not tune."),
        option("--no-compile", is_flag=True, help="Leave torch.compile out."),
        SEED,
    ),
)  # fmt: skip


@command(
    _SOURCES,
    WEIGHTS,
    ARGUMENTS,
    settings=_SETTINGS,
    out=output("the figures", "the table and a plot"),
)
def bench(
    sources: tuple[str, ...],
    weights: Path | None,
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
    from passfx.report.html import bench_to_html
    from passfx.source.inputs import parse_argument

    files = [Path(item) for item in sources if item.endswith(".onnx")]
    models = [item for item in sources if not item.endswith(".onnx")]
    if len(models) > 1:
        raise SourceError(f"one SOURCE can be raced at a time, not {', '.join(models)}")
    if not models and (weights or arguments):
        raise SourceError("--weights and --arg are for a SOURCE, not for ONNX files")
    named: dict[str, Any] = {"arguments": dict(map(parse_argument, arguments))}
    shapes, seed = settings.shapes, settings.seed
    specs = [
        SourceSpec(text, weights=weights, input_shapes=shapes, seed=seed, **named)
        for text in models
    ]
    with out.progress() as progress:
        report = job.bench(specs[0] if specs else None, files, settings, progress)
    out.write_html(lambda: bench_to_html(report))
    out.write_json(report.to_dict())
    print_bench(out.console, report)
