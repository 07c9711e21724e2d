"""`passfx bench`."""

from pathlib import Path

import click

from passfx.cli.options import (
    Output,
    reports_errors,
    runtime_options,
    seed_option,
)
from passfx.compare import compare
from passfx.errors import SourceError
from passfx.files import write_text
from passfx.optimized import PRECISIONS
from passfx.report.console import print_bench
from passfx.report.html import bench_to_html
from passfx.source import load_source, parse_argument, parse_input_shape


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="[SOURCE] [MODEL.onnx]...")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE",
    help="State dict to load: .safetensors, or .pt/.pth.")  # fmt: skip
@click.option("--arg", "arguments", multiple=True, metavar="KEY=VALUE",
    help="Argument of the factory; repeatable.")  # fmt: skip
@runtime_options
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
    help="Of the file that passfx writes.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=20,
    show_default=True, help="Of the race, for each batch size.")  # fmt: skip
@click.option("--tune-budget", type=click.FloatRange(min=0), default=30, show_default=True,
    metavar="SECONDS", help="Of tuning, for each batch size; 0 does not tune.")  # fmt: skip
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out.")
@seed_option
@click.option("--json", "json_path", metavar="FILE|-",
    help="Write the figures as JSON; - is stdout, which then holds nothing else.")  # fmt: skip
@click.option("--report", "html_path", type=click.Path(path_type=Path), metavar="FILE.html",
    help="Write the table and a plot as one HTML page.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@reports_errors
def bench(
    sources: tuple[str, ...],
    weights: Path | None,
    arguments: tuple[str, ...],
    provider: str,
    device: int,
    batches: list[int] | None,
    shapes: tuple[str, ...],
    precision: str,
    seconds: float,
    tune_budget: float,
    no_compile: bool,
    seed: int,
    json_path: str | None,
    html_path: Path | None,
    quiet: bool,
) -> None:
    """Race the ways to run a model: PyTorch, torch.compile, a plain export, passfx, passfx tuned.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    ONNX files take part too, or race each other where there is no SOURCE; one that `passfx tune`
    knows runs tuned as well. All take turns in one run; beside each speed stands how far its
    result is from the model in float64.
    """
    out = Output(json_path, html_path, quiet)
    files = [Path(item) for item in sources if item.endswith(".onnx")]
    models = [item for item in sources if not item.endswith(".onnx")]
    if len(models) > 1:
        raise SourceError(f"one SOURCE can be raced at a time, not {', '.join(models)}")
    if not models and (weights or arguments):
        raise SourceError("--weights and --arg are for a SOURCE, not for ONNX files")
    with out.progress() as progress:
        source = None
        for text in models:
            progress("load")
            source = load_source(
                text,
                arguments=dict(map(parse_argument, arguments)),
                weights=weights,
                input_shapes=[parse_input_shape(shape) for shape in shapes],
                seed=seed,
            )
        report = compare(
            source,
            files,
            provider,
            batches=batches,
            shapes=shapes,
            precision=precision,
            seconds=seconds,
            tune_budget=tune_budget,
            compile=not no_compile,
            device=device,
            seed=seed,
            progress=progress,
        )
    if html_path is not None:
        write_text(html_path, bench_to_html(report))
    out.write_json(report.to_dict())
    print_bench(out.console, report)
