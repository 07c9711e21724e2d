"""`passfx tune`."""

from dataclasses import asdict
from pathlib import Path

import click

from passfx.cli.options import Output, reports_errors, runtime_options, seed_option
from passfx.report.console import print_tuning


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@runtime_options
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=60,
    show_default=True, metavar="SECONDS",
    help="Of measuring; opening and warming up sessions come on top.")  # fmt: skip
@click.option("--allow-fp16", is_flag=True,
    help="Try half precision too, where the provider has kernels for it (cuda).")  # fmt: skip
@click.option("--rtol", type=click.FloatRange(min=0),
    help="Relative error tolerated, from the file on the CPU.  [default: 1e-4; TF32, fp16 1e-2]",
)  # fmt: skip
@seed_option
@click.option("--json", "json_path", metavar="FILE|-", help="Write what was measured as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@reports_errors
def tune(
    model: Path,
    provider: str,
    device: int,
    batches: list[int] | None,
    shapes: tuple[str, ...],
    budget: float,
    allow_fp16: bool,
    rtol: float | None,
    seed: int,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Find the fastest way to run MODEL.onnx on this machine.

    Measures combinations of ONNX Runtime's options and variants of the file in turns, refuses those
    whose results are off, and writes the best to MODEL.passfx.json beside the file, which
    passfx.runtime.load, `passfx bench` and `passfx deploy` read. A variant that wins is written
    as MODEL.tuned.onnx.
    """
    from passfx.runtime.sidecar import sidecar_path
    from passfx.runtime.tune import tune as search

    out = Output(json_path, None, quiet)
    with out.progress() as progress:
        tuned = search(
            model,
            provider,
            batches=batches,
            shapes=shapes,
            budget=budget,
            allow_fp16=allow_fp16,
            rtol=rtol,
            device=device,
            seed=seed,
            progress=progress,
        )
    out.write_json(asdict(tuned.sidecar))
    written = dict.fromkeys([sidecar_path(model), tuned.sidecar.model_path])
    print_tuning(out.console, tuned, [path for path in written if path != model])
