"""`passfx passes`."""

from typing import Any

import click

from passfx.cli.command import command


@command(click.Argument(["name"], required=False))
def passes(name: str | None) -> None:
    """List the passes in their order, or explain the one called NAME."""
    from passfx.errors import SourceError
    from passfx.export.passes import FILE_PASSES
    from passfx.passes import PASSES
    from passfx.passes.base import explanation, summary

    both: tuple[Any, ...] = (*PASSES, *FILE_PASSES)
    kinds = {kind.name: kind for kind in both}
    if name is not None:
        if name not in kinds:
            raise SourceError(f"there is no pass {name!r}; the passes are {', '.join(kinds)}")
        click.echo(f"{name}\n\n{explanation(kinds[name])}")
        return
    width = max(map(len, kinds))
    for known, kind in kinds.items():
        click.echo(f"{known:<{width}}  {summary(kind)}")
