"""The groups of options that commands share; heavy imports wait until a value is made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passfx.cli.command import Group
from passfx.cli.output import Output
from passfx.errors import SourceError
from passfx.export.settings import OPSETS, PRECISIONS, ExportSettings
from passfx.target import CPU, TARGETS

if TYPE_CHECKING:
    from passfx.pipeline import Plan
    from passfx.source.spec import SourceSpec

_FILE = click.Path(path_type=Path)


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(names, **settings)


SEED = _option(
    "--seed", type=int, default=0, show_default=True,
    help="Seed of random weights, inputs and samples.",
)  # fmt: skip
RTOL = _option(
    "--rtol", type=click.FloatRange(min=0),
    help="Relative error tolerated beyond twice the model's own.  [default: 1e-6; fp16 1e-2, "
    "bf16 8e-2]",
)  # fmt: skip
WEIGHTS = _option(
    "--weights", type=_FILE, metavar="FILE", help="State dict to load: .safetensors, or .pt/.pth."
)
ARGUMENTS = _option(
    "--arg", "arguments", multiple=True, metavar="KEY=VALUE",
    help="Argument of the factory; repeatable.",
)  # fmt: skip
PRECISION = _option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
    help="Of the file; fp32 keeps the model's own.",
)  # fmt: skip
JSON = _option("--json", "json_path", metavar="FILE|-",
    help="Write the report as JSON; - is stdout, which then holds nothing else.")  # fmt: skip
REPORT = _option("--report", "html_path", type=_FILE, metavar="FILE.html",
    help="Write the report as one HTML page.")  # fmt: skip
QUIET = _option("-q", "--quiet", is_flag=True, help="Print errors only.")


def _source_spec(
    arguments: tuple[str, ...], dynamic_axes: tuple[str, ...], **given: Any
) -> "SourceSpec":
    from passfx.source.inputs import parse_argument
    from passfx.source.spec import SourceSpec

    return SourceSpec(
        arguments=dict(map(parse_argument, arguments)),
        dynamic_axes=dict(map(_parse_dynamic, dynamic_axes)),
        **given,
    )


def _parse_dynamic(text: str) -> tuple[str, list[int]]:
    name, _, axes = text.rpartition(":")
    try:
        parsed = [int(axis) for axis in axes.split(",")]
    except ValueError:
        parsed = []
    if not name or not parsed:
        raise SourceError(f"the dynamic axes {text!r} are not of the form NAME:0,2,3")
    return name, parsed


SOURCE = Group(
    _source_spec,
    (
        click.Argument(["source"]),
        WEIGHTS,
        ARGUMENTS,
        _option("--input-shape", "input_shapes", multiple=True, metavar="[NAME:]1x3x224x224",
            help="A random input of this shape; repeatable, one for each input."),
        _option("--dynamic-batch", is_flag=True, help="Let the first axis of every input vary."),
        _option("--dynamic", "dynamic_axes", multiple=True, metavar="NAME:0,2,3",
            help="Let these axes of an input vary; repeatable."),
        SEED,
    ),
)  # fmt: skip


def _plan(target: str, skip: tuple[str, ...], only: tuple[str, ...], no_verify: bool) -> "Plan":
    from passfx.pipeline import Plan

    return Plan.of(target, skip, only or None, not no_verify)


_PASSES = (
    _option("--target", type=click.Choice(list(TARGETS)), default=CPU.name, show_default=True,
        help="What the model is for."),
    _option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; repeatable."),
    _option("--only", multiple=True, metavar="PASS", help="Run only this pass; repeatable."),
)  # fmt: skip
_NO_VERIFY = _option(
    "--no-verify", is_flag=True, help="Do not prove the rewrites nor run the file."
)
PLAN = Group(_plan, (*_PASSES, _NO_VERIFY))
PROVEN_PLAN = Group(lambda **given: _plan(no_verify=False, **given), _PASSES)


def _export_settings(
    no_verify: bool, input_names: str | None, output_names: str | None, **given: Any
) -> ExportSettings:
    return ExportSettings(
        verify=not no_verify,
        input_names=tuple(input_names.split(",")) if input_names else None,
        output_names=tuple(output_names.split(",")) if output_names else None,
        **given,
    )


EXPORT = Group(
    _export_settings,
    (
        _option("--opset", type=int, default=CPU.opset, show_default=True,
            help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]}."),
        PRECISION,
        _option("--fp16-io", is_flag=True, help="Inputs and outputs in half precision too."),
        _option("--accuracy", type=click.FloatRange(min=0, min_open=True),
            help="Relative error that one operator may add by half precision; others stay in "
            "fp32."),
        _option("--calibration", type=_FILE, metavar="FILE.npz",
            help="Samples of each input, for the ranges of half precision."),
        _option("--epilogues/--no-epilogues", default=None,
            help="Write conv + bias + shortcut + relu as one FusedConv, which only ONNX Runtime "
            "runs.  [default: for --target cuda in fp32]"),
        RTOL,
        _option("--input-names", metavar="A,B", help="Names of the inputs in the file."),
        _option("--output-names", metavar="A,B", help="Names of the outputs in the file."),
        _NO_VERIFY,
        SEED,
    ),
)  # fmt: skip

OUTPUT = Group(Output, (JSON, REPORT, QUIET))


def parse_batches(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """1,8,32."""
    if text is None:
        return None
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is not of the form 1,8,32")
    return list(dict.fromkeys(sizes))


RUNTIME = (
    _option("--provider", type=click.Choice(list(TARGETS)), default=CPU.name, show_default=True,
        help="Of ONNX Runtime, and the device of PyTorch."),
    _option("--device", type=click.IntRange(min=0), default=0, show_default=True,
        help="Number of the GPU."),
    _option("--batch", "batches", metavar="1,8,32", callback=parse_batches,
        help="Batch sizes; by default that of the file or of the example inputs."),
    _option("--input-shape", "shapes", multiple=True, metavar="[NAME:]1x3x224x224",
        help="Shape of an input; repeatable, one for each input."),
    SEED,
)  # fmt: skip
