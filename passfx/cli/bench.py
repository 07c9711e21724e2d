"""`passfx bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passfx.cli.command import Group, command
from passfx.cli.options import ARGUMENTS, QUIET, RUNTIME, WEIGHTS
from passfx.cli.output import Output
from passfx.errors import SourceError
from passfx.export.settings import PRECISIONS

if TYPE_CHECKING:
    from passfx.jobs.bench import BenchSettings


def _settings(no_compile: bool, **given: Any) -> "BenchSettings":
    from passfx.jobs.bench import BenchSettings

    return BenchSettings(compile=not no_compile, **given)


_SOURCES = click.Argument(["sources"], nargs=-1, required=True, metavar="[SOURCE] [MODEL.onnx]...")
_BENCH = Group(
    _settings,
    (
        *RUNTIME[:-1],
        click.Option(["--precision"], type=click.Choice(PRECISIONS), default="fp32",
            show_default=True, help="Of the file that passfx writes."),
        click.Option(["--seconds"], type=click.FloatRange(min=0, min_open=True), default=20,
            show_default=True, help="Of the race, for each batch size."),
        click.Option(["--tune-budget"], type=click.FloatRange(min=0), default=30,
            show_default=True, metavar="SECONDS",
            help="Of tuning, for each batch size; 0 does not tune."),
        click.Option(["--no-compile"], is_flag=True, help="Leave torch.compile out."),
        RUNTIME[-1],
    ),
)  # fmt: skip
_OUTPUT = Group(
    Output,
    (
        click.Option(["--json", "json_path"], metavar="FILE|-",
            help="Write the figures as JSON; - is stdout, which then holds nothing else."),
        click.Option(["--report", "html_path"], type=click.Path(path_type=Path),
            metavar="FILE.html", help="Write the table and a plot as one HTML page."),
        QUIET,
    ),
)  # fmt: skip


@command(_SOURCES, WEIGHTS, ARGUMENTS, settings=_BENCH, out=_OUTPUT)
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
    from passfx.source.spec import SourceSpec

    files = [Path(item) for item in sources if item.endswith(".onnx")]
    models = [item for item in sources if not item.endswith(".onnx")]
    if len(models) > 1:
        raise SourceError(f"one SOURCE can be raced at a time, not {', '.join(models)}")
    if not models and (weights or arguments):
        raise SourceError("--weights and --arg are for a SOURCE, not for ONNX files")
    spec = None
    for text in models:
        given = dict(map(parse_argument, arguments))
        spec = SourceSpec(
            text,
            arguments=given,
            weights=weights,
            input_shapes=settings.shapes,
            seed=settings.seed,
        )
    with out.progress() as progress:
        report = job.bench(spec, files, settings, progress)
    out.write_html(lambda: bench_to_html(report))
    out.write_json(report.to_dict())
    print_bench(out.console, report)
