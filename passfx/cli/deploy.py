"""`passfx deploy`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from passfx.cli.command import FILE, Group, command, option
from passfx.cli.options import MODEL, QUIET
from passfx.cli.output import Output
from passfx.errors import ExportError
from passfx.files import is_file
from passfx.target import TARGETS

if TYPE_CHECKING:
    from passfx.export.triton import TritonSettings

_TRITON = option("--triton", "repository", type=FILE, required=True, metavar="DIR",
    help="The model repository to write into; made where it does not exist.")  # fmt: skip
_PROVIDER = option("--provider", type=click.Choice(TARGETS),
    help="Where it runs.  [default: as tuned, else on GPUs where the server has any]")  # fmt: skip
_SETTINGS = Group("passfx.export.triton:TritonSettings", (
    option("--name", help="Of the model in Triton.  [default: the name of the file]"),
    option("--version", type=click.IntRange(min=1), default=1,
        help="A version that exists is never overwritten."),
    option("--max-batch-size", type=click.IntRange(min=0), help="Of the dynamic batcher; 0 turns "
        "it off.  [default: 0 for a fixed batch, else 32]"),
    option("--max-queue-delay", type=click.IntRange(min=0), default=100, metavar="MICROSECONDS",
        help="How long a request may wait for others."),
    option("--instances", type=click.IntRange(min=1), default=1,
        help="Copies of the model on each GPU, or on the CPU."),
))  # fmt: skip
_OUTPUT = Group(Output, (QUIET,))


@command(model=MODEL, repository=_TRITON, provider=_PROVIDER, settings=_SETTINGS, out=_OUTPUT)
def deploy(
    model: Path, repository: Path, provider: str | None, settings: "TritonSettings", out: Output
) -> None:
    """Write MODEL.onnx as a model repository of NVIDIA Triton Inference Server.

    A file that `passfx tune` knows is deployed as it was tuned: the variant that won, with its
    options as far as Triton has keys for them.
    """
    from passfx.export.triton import write_triton
    from passfx.runtime.sidecar import read_sidecar

    if not is_file(model):
        raise ExportError(f"the file {model} does not exist")
    sidecar = read_sidecar(model)
    tuned = sidecar if sidecar and provider in (None, sidecar.options.provider) else None
    if tuned:
        provider, options = tuned.options.provider, tuned.options.differences()
        settings = replace(settings, options=options, batches=tuned.batches)
    name = settings.name or re.sub(r"[^A-Za-z0-9_.-]", "_", model.stem)
    settings = replace(settings, name=name, provider=provider)
    written = write_triton(tuned.model_path if tuned else model, repository, settings)
    for path in written.files:
        out.console.print(f"Written      {path}")
    if written.ignored:
        out.console.print(f"Left out     {', '.join(written.ignored)}: Triton has no key for it")
    if provider is None:
        out.console.print("Runs         on the server's GPUs, or its CPU; --provider says which")
    if sidecar is not None and tuned is None:
        out.console.print(f"Untuned      the file was tuned for {sidecar.options.provider}")
    out.console.print(f"Serve        tritonserver --model-repository={repository}")
