"""`passfx`: the group of commands."""

import click

from passfx.cli.convert import convert
from passfx.cli.doctor import doctor
from passfx.cli.inspect import inspect
from passfx.cli.passes import passes
from passfx.cli.verify import verify
from passfx.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="passfx %(version)s")
def main() -> None:
    """Make a PyTorch model fast: find its shortcuts, fold what is linear, prove every rewrite,
    and write ONNX.

    \b
    passfx convert timm:resnet50d -o resnet50d.onnx
    passfx inspect my_model.py:build --input-shape 1x3x224x224

    Exit codes: 0 done; 1 the result failed verification; 2 bad usage or bad input.
    """


for command in (convert, inspect, verify, passes, doctor):
    main.add_command(command)
