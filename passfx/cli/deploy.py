"""`passfx deploy`."""

import re
from pathlib import Path

import click

from passfx.cli.options import Output, reports_errors
from passfx.errors import ExportError
from passfx.optimized import TARGETS


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--triton", "repository", type=click.Path(path_type=Path), required=True,
    metavar="DIR", help="The model repository to write into; made where it does not exist.",
)  # fmt: skip
@click.option("--name", help="Of the model in Triton.  [default: the name of the file]")
@click.option("--version", type=click.IntRange(min=1), default=1, show_default=True,
    help="A version that exists is never overwritten.")  # fmt: skip
@click.option("--provider", type=click.Choice(TARGETS),
    help="Where it runs.  [default: as it was tuned, else cuda]")  # fmt: skip
@click.option("--max-batch-size", type=click.IntRange(min=0),
    help="Of the dynamic batcher; 0 turns it off.  [default: 0 for a fixed batch, else 32]",
)  # fmt: skip
@click.option("--max-queue-delay", type=click.IntRange(min=0), default=100, show_default=True,
    metavar="MICROSECONDS", help="How long a request may wait for others.")  # fmt: skip
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True,
    help="Copies of the model on each GPU, or on the CPU.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@reports_errors
def deploy(
    model: Path,
    repository: Path,
    name: str | None,
    version: int,
    provider: str | None,
    max_batch_size: int | None,
    max_queue_delay: int,
    instances: int,
    quiet: bool,
) -> None:
    """Write MODEL.onnx as a model repository of NVIDIA Triton Inference Server.

    A file that `passfx tune` knows is deployed as it was tuned: the variant that won, with its
    options as far as Triton has keys for them.
    """
    from passfx.export.triton import write_triton
    from passfx.runtime.sidecar import read_sidecar

    out = Output(None, None, quiet)
    if not model.is_file():
        raise ExportError(f"the file {model} does not exist")
    sidecar = read_sidecar(model)
    tuned = sidecar if sidecar and provider in (None, sidecar.options.provider) else None
    written = write_triton(
        tuned.model_path if tuned else model,
        repository,
        name=name or re.sub(r"[^A-Za-z0-9_.-]", "_", model.stem),
        version=version,
        provider=tuned.options.provider if tuned else provider or "cuda",
        options=tuned.options.differences() if tuned else {},
        batches=tuned.batches if tuned else (),
        max_batch_size=max_batch_size,
        max_queue_delay=max_queue_delay,
        instances=instances,
    )
    for path in written.files:
        out.console.print(f"Written      {path}")
    if written.ignored:
        out.console.print(f"Left out     {', '.join(written.ignored)}: Triton has no key for it")
    if sidecar is not None and tuned is None:
        out.console.print(f"Untuned      the file was tuned for {sidecar.options.provider}")
    out.console.print(f"Serve        tritonserver --model-repository={repository}")
