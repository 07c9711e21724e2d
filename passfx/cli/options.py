"""What the commands share: options, error handling, where output goes."""

import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from passfx.convert import load_and_optimize
from passfx.errors import PassfxError, SourceError, VerificationError
from passfx.files import check_writable, write_text
from passfx.optimized import TARGETS, Optimized, Plan, Progress
from passfx.report.html import to_html
from passfx.report.model import Report
from passfx.source import parse_argument

_FILE_WIDTH = 160  # columns of a table in a file or a pipe

_Command = TypeVar("_Command", bound=Callable[..., Any])

seed_option = click.option(
    "--seed", type=int, default=0, show_default=True,
    help="Seed of random weights, inputs and samples.",
)  # fmt: skip

rtol_option = click.option(
    "--rtol", type=click.FloatRange(min=0),
    help="Relative error tolerated beyond twice the model's own.  [default: 1e-6; fp16 1e-2, "
    "bf16 8e-2]",
)  # fmt: skip

_SOURCE_OPTIONS = (
    click.argument("source"),
    click.option(
        "--weights", type=click.Path(path_type=Path), metavar="FILE",
        help="State dict to load: .safetensors, or .pt/.pth.",
    ),
    click.option(
        "--arg", "arguments", multiple=True, metavar="KEY=VALUE",
        help="Argument of the factory; repeatable.",
    ),
    click.option(
        "--input-shape", "input_shapes", multiple=True, metavar="[NAME:]1x3x224x224",
        help="A random input of this shape; repeatable, one for each input.",
    ),
    click.option("--dynamic-batch", is_flag=True, help="Let the first axis of every input vary."),
    click.option(
        "--dynamic", "dynamic_axes", multiple=True, metavar="NAME:0,2,3",
        help="Let these axes of an input vary; repeatable.",
    ),
    seed_option,
)  # fmt: skip

_PASS_OPTIONS = (
    click.option(
        "--target", type=click.Choice(TARGETS), default="cpu", show_default=True,
        help="What the model is for.",
    ),
    click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; repeatable."),
    click.option("--only", multiple=True, metavar="PASS", help="Run only this pass; repeatable."),
)  # fmt: skip

_OUTPUT_OPTIONS = (
    click.option(
        "--json", "json_path", metavar="FILE|-",
        help="Write the report as JSON; - is stdout, which then holds nothing else.",
    ),
    click.option(
        "--report", "html_path", type=click.Path(path_type=Path), metavar="FILE.html",
        help="Write the report as one HTML page.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)  # fmt: skip


def _parse_batches(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is not of the form 1,8,32")
    return list(dict.fromkeys(sizes))


_RUNTIME_OPTIONS = (
    click.option(
        "--provider", type=click.Choice(TARGETS), default="cpu", show_default=True,
        help="Of ONNX Runtime, and the device of PyTorch.",
    ),
    click.option(
        "--device", type=click.IntRange(min=0), default=0, show_default=True,
        help="Number of the GPU.",
    ),
    click.option(
        "--batch", "batches", metavar="1,8,32", callback=_parse_batches,
        help="Batch sizes; by default that of the file or of the example inputs.",
    ),
    click.option(
        "--input-shape", "shapes", multiple=True, metavar="[NAME:]1x3x224x224",
        help="Shape of an input; repeatable, one for each input.",
    ),
)  # fmt: skip


def _stack(options: tuple[Callable[..., Any], ...]) -> Callable[[_Command], _Command]:
    def decorate(function: _Command) -> _Command:
        return functools.reduce(lambda inner, option: option(inner), reversed(options), function)

    return decorate


source_options = _stack(_SOURCE_OPTIONS)
pass_options = _stack(_PASS_OPTIONS)
output_options = _stack(_OUTPUT_OPTIONS)
runtime_options = _stack(_RUNTIME_OPTIONS)


class Output:
    """Where a command writes: results to stdout, unless JSON goes there; the rest to stderr."""

    def __init__(self, json_path: str | None, html_path: Path | None, quiet: bool) -> None:
        self._json_path = json_path
        self._html_path = html_path
        self._quiet = quiet
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        to_stderr = json_path == "-"
        self.console = Console(
            stderr=to_stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True
        )
        if not self.console.is_terminal:
            self.console.width = _FILE_WIDTH
        for path in (json_path if json_path != "-" else None, html_path):
            if path is not None:
                check_writable(Path(path))

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Tell the stage on stderr while it runs; silent where that is no terminal."""
        if self._quiet or not self.errors.is_terminal:
            yield lambda _: None
            return
        with self.errors.status("load") as status:
            yield status.update

    def write(self, report: Report) -> None:
        """The report, as `--json` and `--report` ask for it; a file whole or not at all."""
        if self._html_path is not None:
            write_text(self._html_path, to_html(report))
        self.write_json(report.to_dict())

    def write_json(self, found: dict[str, Any]) -> None:
        """Plain values, as `--json` asks for them."""
        if self._json_path is None:
            return
        text = json.dumps(_finite(found), indent=2, allow_nan=False, default=str) + "\n"
        if self._json_path == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(self._json_path), text)


def _finite(item: Any) -> Any:
    """JSON has no infinity and no NaN; a report says them as strings."""
    if isinstance(item, dict):
        return {key: _finite(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_finite(value) for value in item]
    if isinstance(item, float) and item - item != 0:
        return str(item)
    return item


def reports_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Turn an error into one sentence on stderr and its exit code: 1 verification, 2 the rest."""

    @functools.wraps(function)
    def command(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except click.ClickException:
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            message = str(error)
            if not isinstance(error, PassfxError):
                first_line = message.partition("\n")[0]
                message = f"{type(error).__name__}: {first_line}. This is a bug in passfx" + (
                    "" if debug else "; --debug shows the traceback"
                )
            click.echo(f"error: {message}", err=True)
            sys.exit(1 if isinstance(error, VerificationError) else 2)

    return command


def load(
    source: str,
    *,
    arguments: tuple[str, ...],
    dynamic_axes: tuple[str, ...],
    target: str = "cpu",
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    verify: bool = True,
    **options: Any,
) -> Optimized:
    """A source, as the options of the command line give it, captured and rewritten."""
    return load_and_optimize(
        source,
        plan=Plan(target, skip, only or None, verify),
        arguments=dict(map(parse_argument, arguments)),
        dynamic_axes=dict(map(_parse_dynamic, dynamic_axes)),
        **options,
    )


def _parse_dynamic(text: str) -> tuple[str, list[int]]:
    name, _, axes = text.rpartition(":")
    try:
        parsed = [int(axis) for axis in axes.split(",")]
    except ValueError:
        parsed = []
    if not name or not parsed:
        raise SourceError(f"the dynamic axes {text!r} are not of the form NAME:0,2,3")
    return name, parsed
