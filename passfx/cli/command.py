"""What a command is: groups of options that become values, and errors that become sentences."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from passfx.errors import PassError, PassfxError, VerificationError, named_line

FILE = click.Path(path_type=Path)
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
            values = {
                name: place.value(given) if isinstance(place, Group) else given[name]
                for name, place in places.items()
            }
            function(**values)

        return Command(function.__name__, callback=run, params=params, help=function.__doc__)

    return decorate
