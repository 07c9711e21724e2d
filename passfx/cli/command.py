"""What a command is: groups of options that become values, and errors that become sentences."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from passfx.errors import PassError, PassfxError, VerificationError, named_line

FILE = click.Path(path_type=Path)
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


def option(*names: str, **settings: Any) -> click.Option:
    """An option, whose default the help shows where there is one."""
    return click.Option(names, show_default=settings.get("default") is not None, **settings)


@dataclass(frozen=True)
class Group:
    """Options that belong together, and what makes one value of them, given by their names.

    `build` is a function, or "module:name" of one that is imported when it is needed.
    """

    build: Callable[..., Any] | str
    options: Sequence[click.Parameter]

    def value(self, given: dict[str, Any]) -> Any:
        """The value of the options that were given."""
        build = self.build
        if isinstance(build, str):
            module, _, name = build.partition(":")
            build = getattr(import_module(module), name)
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


def command(
    *own: click.Parameter | str, **groups: Group
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, whose docstring is its help.

    Args:
        own: its own parameters. A group's name stands where the group is in the help; the other
            groups follow.
        groups: the function gets the value of each under its name. Options that two groups share
            are given once, and to both.
    """
    parameters: dict[str | None, click.Parameter] = {}
    for place in (*own, *(name for name in groups if name not in own)):
        found = groups[place].options if isinstance(place, str) else [place]
        parameters |= {item.name: item for item in found}
    debug = option("--debug", is_flag=True, help="Show the traceback of an error.")

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(**given: Any) -> None:
            values = {name: group.value(given) for name, group in groups.items()}
            alone = [str(item.name) for item in own if isinstance(item, click.Parameter)]
            function(**values, **{name: given[name] for name in alone})

        return Command(
            function.__name__,
            callback=run,
            params=[*parameters.values(), debug],
            help=function.__doc__,
        )

    return decorate
