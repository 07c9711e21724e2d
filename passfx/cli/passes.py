"""`passfx passes`."""

from typing import Any

import click

from passfx.cli.command import command, option

_MARKDOWN = option("--markdown", is_flag=True, help="Explain all of them, as one Markdown page.")


@command(name=click.Argument(["name"], required=False), markdown=_MARKDOWN)
def passes(name: str | None, markdown: bool) -> None:
    """List the passes in their order, or explain the one called NAME."""
    from passfx.export.passes import FILE_PASSES
    from passfx.passes import PASSES
    from passfx.passes.base import explanation, summary
    from passfx.pipeline import check_pass

    both: tuple[Any, ...] = (*PASSES, *FILE_PASSES)
    kinds = {kind.name: kind for kind in both}
    if name is not None:
        check_pass(name, kinds)
    if markdown:
        click.echo("# The passes, in the order in which they run\n")
        click.echo("Made by `passfx passes --markdown > docs/passes.md`.")
        for known, kind in kinds.items():
            click.echo(f"\n## {known}\n\n{explanation(kind)}")
    elif name is not None:
        click.echo(f"{name}\n\n{explanation(kinds[name])}")
    else:
        for known, kind in kinds.items():
            click.echo(f"{known:<{max(map(len, kinds))}}  {summary(kind)}")
