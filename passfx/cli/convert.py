"""`passfx convert`."""

from pathlib import Path
from typing import Any

import click

from passfx.cli.options import (
    Output,
    load,
    output_options,
    pass_options,
    reports_errors,
    rtol_option,
    source_options,
)
from passfx.optimized import OPSETS, PRECISIONS, check_export
from passfx.report.console import print_conversion


@click.command()
@source_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write."
)
@click.option(
    "--opset", type=int, default=20, show_default=True,
    help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]}.",
)  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
    help="Of the file; fp32 keeps the model's own.")  # fmt: skip
@click.option("--fp16-io", is_flag=True, help="Inputs and outputs in half precision too.")
@click.option("--accuracy", type=click.FloatRange(min=0, min_open=True),
    help="Relative error that one operator may add by half precision; others stay in fp32.",
)  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE.npz",
    help="Samples of each input, for the ranges of half precision.")  # fmt: skip
@click.option("--epilogues/--no-epilogues", default=None,
    help="Write conv + bias + shortcut + relu as one FusedConv, which only ONNX Runtime runs.  "
    "[default: for --target cuda in fp32]")  # fmt: skip
@rtol_option
@click.option("--input-names", metavar="A,B", help="Names of the inputs in the file.")
@click.option("--output-names", metavar="A,B", help="Names of the outputs in the file.")
@click.option("--no-verify", is_flag=True, help="Do not prove the rewrites nor run the file.")
@pass_options
@output_options
@reports_errors
def convert(
    source: str,
    output: Path,
    opset: int,
    precision: str,
    fp16_io: bool,
    accuracy: float | None,
    calibration: Path | None,
    epilogues: bool | None,
    rtol: float | None,
    input_names: str | None,
    output_names: str | None,
    no_verify: bool,
    seed: int,
    json_path: str | None,
    html_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to an optimised ONNX file.

    SOURCE is file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2.
    The file is run under ONNX Runtime and compared with the model in float64; if it disagrees,
    the exit code is 1 and no file is written.
    """
    out = Output(json_path, html_path, quiet)
    check_export(output, precision, opset, options["target"], epilogues)
    with out.progress() as progress:
        optimized = load(source, seed=seed, verify=not no_verify, progress=progress, **options)
        report = optimized.export(
            output,
            precision,
            opset,
            epilogues=epilogues,
            fp16_io=fp16_io,
            accuracy=accuracy,
            calibration=calibration,
            verify=not no_verify,
            rtol=rtol,
            seed=seed,
            input_names=input_names.split(",") if input_names else None,
            output_names=output_names.split(",") if output_names else None,
            progress=progress,
        )
    out.write(report)
    print_conversion(out.console, report)
