"""What a command is: groups of options that become values, and errors that become sentences."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from passfx.errors import PassError, PassfxError, VerificationError, named_line
from passfx.files import check_apart, is_file
from passfx.source.spec import source_file


class _Source(click.types.StringParamType):
    """A source, or an ONNX file, as text."""


FILE = click.Path(path_type=Path)  # that a command reads
WRITTEN = click.Path(path_type=Path)
WRITTEN_OR_STDOUT = click.Path(allow_dash=True)
SOURCE = _Source()
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


def option(*names: str, **settings: Any) -> click.Option:
    """An option, whose default the help shows where there is one."""
    return click.Option(names, show_default=settings.get("default") is not None, **settings)


def without(name: str, help: str) -> click.Option:
    """A flag `--no-NAME`, which makes NAME false."""
    return option(f"--no-{name}", name, is_flag=True, callback=lambda _, __, on: not on, help=help)


@dataclass(frozen=True)
class Group:
    """Options that belong together, and what makes one value of them, given by their names.

    `build` is a function, or "module:name" of one that is imported when it is needed.
    """

    build: Callable[..., Any] | str
    options: Sequence[click.Parameter]

    def value(self, given: dict[str, Any]) -> Any:
        """The value of the options that were given."""
        build = resolve_name(self.build) if isinstance(self.build, str) else self.build
        return build(**{str(item.name): given[str(item.name)] for item in self.options})


class Command(click.Command):
    """Turns an error into one sentence on stderr and its exit code: 1 verification, 2 the rest."""

    def invoke(self, context: click.Context) -> None:
        """Run the command."""
        debug = context.params.pop("debug")
        try:
            super().invoke(context)
        except (click.ClickException, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            message = str(error)
            if not isinstance(error, PassfxError):
                message = message if isinstance(error, PassError) else named_line(error)
                message += ". This is a bug in passfx"
                message += "" if debug else "; --debug shows the traceback"
            click.echo(f"error: {message}", err=True)
            sys.exit(1 if isinstance(error, VerificationError) else 2)


def _check_files(params: Sequence[click.Parameter], given: Mapping[str, Any]) -> None:
    """Refuse to write a file over another one, or over one that is read."""
    written: dict[str, Path | None] = {}
    read: dict[str, Path | None] = {}
    for item in params:
        value: Any = given.get(str(item.name))
        label = item.opts[-1] if isinstance(item, click.Option) else item.human_readable_name
        if item.type in (WRITTEN, WRITTEN_OR_STDOUT) and value not in (None, "-"):
            written[label] = Path(value)
        elif item.type is FILE:
            read[label] = value
        elif item.type is SOURCE:
            texts = value if isinstance(value, tuple) else [value]
            read |= {text: source_file(text) for text in texts}
    if any(path and is_file(path) for path in written.values()):
        models = [path for path in read.values() if path and path.suffix == ".onnx"]
        read |= {f"the weights of {path}": data for path in models for data in _data(path)}
    check_apart(written, read)


def _data(model: Path) -> list[Path]:
    from passfx.export.onnx import external_files

    try:
        return external_files(model)
    except PassfxError:  # the command itself says what is wrong with it
        return []


_DEBUG = option("--debug", is_flag=True, help="Show the traceback of an error.")


def command(**places: Group | click.Parameter) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, whose docstring is its help.

    Args:
        places: parameters and groups, in the order of the help; the function gets the value of
            each under its name. Options that two groups share are given once, and to both.
    """
    listed = [place.options if isinstance(place, Group) else [place] for place in places.values()]
    params = list(dict.fromkeys((*chain.from_iterable(listed), _DEBUG)))

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(**given: Any) -> None:
            _check_files(params, given)
            values = {
                name: place.value(given) if isinstance(place, Group) else given[name]
                for name, place in places.items()
            }
            function(**values)

        return Command(function.__name__, callback=run, params=params, help=function.__doc__)

    return decorate
