"""`passfx`: the group of commands."""

import os
import sys
from typing import Any

import click

from passfx.cli.bench import bench
from passfx.cli.convert import convert
from passfx.cli.deploy import deploy
from passfx.cli.doctor import doctor
from passfx.cli.inspect import inspect
from passfx.cli.passes import passes
from passfx.cli.tune import tune
from passfx.cli.verify import verify
from passfx.version import __version__


class _Commands(click.Group):
    """Reports bad usage as the commands report bad input: one sentence, exit code 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command and exit."""
        try:
            sys.exit(super().main(*args, **{**options, "standalone_mode": False}))
        except click.UsageError as error:
            message = error.format_message().rstrip(".")
            command = error.ctx.command_path if error.ctx else "passfx"
            click.echo(f"error: {message[:1].lower()}{message[1:]}; see {command} --help", err=True)
            sys.exit(2)
        except BrokenPipeError:  # `passfx passes | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except click.Abort:
            sys.exit(130)  # as the shell counts an interrupted command


@click.group(
    cls=_Commands,
    commands=[convert, inspect, verify, tune, bench, deploy, passes, doctor],
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="passfx %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Make a PyTorch model fast: find its shortcuts, fold what is linear, prove every rewrite,
    and write ONNX.

    \b
    passfx convert timm:resnet50d -o resnet50d.onnx
    passfx inspect my_model.py:build --input-shape 1x3x224x224
    passfx tune resnet50d.onnx
    passfx bench timm:resnet50d
    passfx deploy resnet50d.onnx --triton models

    Exit codes: 0 done; 1 the result failed verification; 2 bad usage or bad input.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
