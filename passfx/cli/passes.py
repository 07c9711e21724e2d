"""`passfx passes`."""

import click

from passfx.cli.options import reports_errors
from passfx.passes import PASSES
from passfx.pipeline import choose_passes


@click.command()
@click.argument("name", required=False)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@reports_errors
def passes(name: str | None) -> None:
    """List the passes in their order, or explain the one called NAME."""
    if name is not None:
        (chosen,) = choose_passes(only=[name])
        click.echo(f"{chosen.name}\n\n{chosen.explanation()}")
        return
    width = max(len(kind.name) for kind in PASSES)
    for kind in PASSES:
        click.echo(f"{kind.name:<{width}}  {kind.summary()}")
