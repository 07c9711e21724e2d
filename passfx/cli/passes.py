"""`passfx passes`."""

import click
from rich.console import Console
from rich.table import Table

from passfx.cli.options import reports_errors
from passfx.passes import PASSES
from passfx.pipeline import choose_passes


@click.command()
@click.argument("name", required=False)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@reports_errors
def passes(name: str | None) -> None:
    """List the passes in the order in which they run, or explain the one called NAME."""
    console = Console(highlight=False)
    if name is not None:
        (chosen,) = choose_passes(only=[name])
        console.print(f"{chosen.name}\n\n{chosen.explanation()}", markup=False)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for kind in PASSES:
        table.add_row(kind.name, kind.summary())
    console.print(table)
