"""What a command is: groups of options that become values, and errors that become sentences."""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from passfx.errors import PassError, PassfxError, VerificationError, named_line

_DEBUG = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")


@dataclass(frozen=True)
class Group:
    """Options that belong together, and what makes one value of them, given by their names."""

    build: Callable[..., Any]
    options: Sequence[click.Parameter]


class Command(click.Command):
    """Turns an error into one sentence on stderr and its exit code: 1 verification, 2 the rest."""

    def invoke(self, context: click.Context) -> None:
        """Run the command."""
        debug = context.params.pop("debug")
        try:
            super().invoke(context)
        except click.ClickException:
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
    *options: click.Parameter | str, **groups: Group
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, whose docstring is its help.

    Args:
        options: its own parameters. A group's name stands where the group is in the help; the
            others follow.
        groups: the function gets the value of each under its name. Options that two groups share
            are given once, and to both.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(**given: Any) -> None:
            values = {}
            for name, group in groups.items():
                keys = [str(option.name) for option in group.options]
                values[name] = group.build(**{key: given[key] for key in keys})
            used = {option.name for group in groups.values() for option in group.options}
            function(**values, **{key: item for key, item in given.items() if key not in used})

        parameters: dict[str, click.Parameter] = {}
        places = [*options, *(name for name in groups if name not in options)]
        for place in places:
            found = groups[place].options if isinstance(place, str) else [place]
            parameters |= {str(item.name): item for item in found}
        return Command(
            function.__name__,
            callback=run,
            params=[*parameters.values(), _DEBUG],
            help=function.__doc__,
        )

    return decorate
