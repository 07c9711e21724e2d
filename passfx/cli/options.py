"""The options that commands share; what is heavy is imported when a value is made of them."""

import re
from collections.abc import Sequence
from typing import Any

import click

from passfx.cli import command
from passfx.cli.command import (
    ABOVE_ZERO,
    FILE,
    WRITTEN,
    WRITTEN_OR_STDOUT,
    Group,
    option,
    without,
)
from passfx.cli.output import Output
from passfx.errors import SourceError
from passfx.export.settings import OPSETS, PRECISIONS, ExportSettings
from passfx.source.spec import Axes, SourceSpec
from passfx.target import CPU, TARGETS

MODEL = click.Argument(["model"], type=FILE, metavar="MODEL.onnx")
QUIET = option("-q", "--quiet", is_flag=True, help="Print errors only.")
SEED = option("--seed", type=int, default=0, help="Seed of random weights, inputs and samples.")
RTOL = option("--rtol", type=click.FloatRange(min=0), help="Relative error tolerated beyond twice "
    "the model's own.  [default: 1e-6; fp16 1e-2, bf16 8e-2]")  # fmt: skip
NONFINITE = option("--allow-nonfinite", is_flag=True,
    help="Accept NaN and infinite weights and results, of which nothing is proven.")  # fmt: skip
WEIGHTS = option("--weights", type=FILE, metavar="FILE",
    help="Weights to load: .safetensors, or what torch.save wrote (.pt, .pth, .ckpt); none: as a "
    "zoo starts it.")  # fmt: skip
WEIGHTS_KEY = option("--weights-key", metavar="KEY",
    help="Part of it to take: ema, or ema.state_dict.  [default: one that fits]")  # fmt: skip
STRICT = option("--strict/--no-strict", default=True,
    help="Refuse weights that lack a key of the model, or have another one besides.")  # fmt: skip
ARGUMENTS = option("--arg", "arguments", multiple=True, metavar="KEY=VALUE",
    help="Argument of the factory; repeatable.")  # fmt: skip
TRUST = option("--trust-pickle", is_flag=True,
    help="Load a .pt2 file, or a whole module as --weights, even if that could run any code that "
    "is in it.")  # fmt: skip
_VERIFY = without("verify", "Do not prove the rewrites nor run the file.")


def source_spec(arguments: Sequence[str], dynamic_axes: Sequence[str], **given: Any) -> SourceSpec:
    """The value of the options about a source; every other field of it is given as it is."""
    from passfx.source.inputs import parse_argument

    named, axes = dict(map(parse_argument, arguments)), dict(map(_parse_dynamic, dynamic_axes))
    return SourceSpec(arguments=named, dynamic_axes=axes, **given)


def _parse_dynamic(text: str) -> tuple[str, Axes]:
    """`NAME:0,2,3`, each axis with `=MIN:MAX` where it has a range; an end may be left out."""
    name, _, axes = text.partition(":")
    form = r"(\d+)(?:=(\d*):(\d*))?"
    found = [re.fullmatch(form, item) for item in axes.split(",")]
    if not name or None in found:
        raise SourceError(
            f"the dynamic axes {text!r} are not of the form NAME:0,2,3 or NAME:0,2=8:100"
        )
    ends = [tuple(int(end) if end else None for end in item.groups()) for item in found if item]
    if any(low is not None and high is not None and low > high for _, low, high in ends):
        raise SourceError(f"a range of the dynamic axes {text!r} ends before it starts")
    return name, {axis: (low, high) for axis, low, high in ends if axis is not None}


def _parse_batches(text: str) -> list[int]:
    sizes = _numbers(text)
    if min(sizes, default=0) < 1:
        raise click.BadParameter(f"{text!r} is not of the form 1,8,32")
    return sizes


def _names(text: str) -> list[str] | None:
    return text.split(",") if text else None


def _numbers(text: str) -> list[int]:
    """Whole numbers between commas, each once; none where it is anything else."""
    try:
        return list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        return []


SOURCE = Group(source_spec, (
    click.Argument(["source"], type=command.SOURCE),
    WEIGHTS,
    WEIGHTS_KEY,
    STRICT,
    ARGUMENTS,
    option("--input-shape", "input_shapes", multiple=True, metavar="[NAME:]1x3x224x224[:DTYPE]",
        help="A random input: normal numbers in the model's dtype where none is given, 0 and 1 for "
        "int64 and bool, 0 to 255 for uint8; repeatable, one for each input."),
    option("--dynamic-batch", is_flag=True, help="Let the first axis of every input vary."),
    option("--dynamic", "dynamic_axes", multiple=True, metavar="NAME:0,2=8:100",
        help="Let these axes of an input vary, from =MIN:MAX where that is given; repeatable."),
    TRUST,
    SEED,
))  # fmt: skip
_PASSES = (
    option("--target", type=click.Choice(TARGETS), default=CPU.name,
        callback=lambda _, __, name: TARGETS[name], help="What the model is for."),
    option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; repeatable."),
    option("--only", multiple=True, metavar="PASS", callback=lambda _, __, names: names or None,
        help="Run only this pass; repeatable."),
    option("--save-repro", type=FILE, metavar="DIR",
        help="Save rewrites that are undone here, each with a script that shows the failure."),
)  # fmt: skip
PLAN = Group("passfx.pipeline:Plan", (*_PASSES, _VERIFY, NONFINITE))
PROVEN_PLAN = Group("passfx.pipeline:Plan", (*_PASSES, NONFINITE))
EXPORT = Group(ExportSettings, (
    option("--opset", type=int, default=CPU.opset,
        help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]}."),
    option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0],
        help="Of the file; fp32 keeps the model's own."),
    option("--fp16-io", is_flag=True, help="Inputs and outputs in half precision too."),
    option("--accuracy", type=ABOVE_ZERO,
        help="Relative error that one operator may add by half precision; others stay in fp32."),
    option("--calibration", type=FILE, metavar="FILE.npz",
        help="Samples of each input, for the ranges of half precision."),
    option("--epilogues/--no-epilogues", default=None, help="Write conv + bias + shortcut + relu "
        "as one FusedConv, which only ONNX Runtime runs.  [default: for --target cuda in fp32]"),
    RTOL,
    option("--input-names", type=_names, metavar="A,B", help="Names of the inputs in the file."),
    option("--output-names", type=_names, metavar="A,B", help="Names of the outputs in the file."),
    NONFINITE,
    option("--allow-guards", is_flag=True, help="Write a file that is wrong at sizes which the "
        "model takes and the captured graph does not."),
    _VERIFY,
    SEED,
))  # fmt: skip
RUNTIME = (
    option("--provider", type=click.Choice(TARGETS), default=CPU.name,
        help="Of ONNX Runtime, and the device of PyTorch."),
    option("--device", type=click.IntRange(min=0), default=0, help="Number of the GPU."),
    option("--batch", "batches", type=_parse_batches, metavar="1,8,32",
        help="Batch sizes; by default that of the file or of the example inputs."),
    option("--input-shape", "shapes", multiple=True, metavar="[NAME:]1x3x224x224[:DTYPE]",
        help="Shape of an input; repeatable, one for each input."),
)  # fmt: skip


def output(what: str, page: str | None = None, *, alone: bool = True) -> Group:
    """The options about what a command writes besides: `what` as JSON, and perhaps a page."""
    rest = "; - is stdout, which then holds nothing else" if alone else ""
    json = option(
        "--json",
        "json_path",
        type=WRITTEN_OR_STDOUT,
        metavar="FILE|-",
        help=f"Write {what} as JSON{rest}.",
    )
    html = option("--report", "html_path", type=WRITTEN, metavar="FILE.html",
        help=f"Write {page} as one HTML page.")  # fmt: skip
    return Group(Output, (json, html, QUIET) if page else (json, QUIET))


OUTPUT = output("the report", "the report")
