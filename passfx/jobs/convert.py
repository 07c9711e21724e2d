"""`passfx.convert`: from a source to a proven ONNX file."""

from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from passfx.export.settings import ExportSettings
from passfx.files import check_apart
from passfx.jobs.optimize import optimize_source
from passfx.pipeline import Plan, Progress, silent
from passfx.report.model import Report
from passfx.source.spec import Axes, SourceSpec
from passfx.target import CPU, find_target

if TYPE_CHECKING:
    from passfx.source.spec import Given


def convert(
    source: str | torch.nn.Module | ExportedProgram,
    path: str | PathLike[str],
    args: "Given" = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | PathLike[str] | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input_shapes: Sequence[str] = (),
    dynamic_batch: bool = False,
    dynamic_axes: Mapping[str, Axes] | None = None,
    dynamic_shapes: Any = None,
    target: str = CPU.name,
    precision: str = "fp32",
    opset: int = 20,
    epilogues: bool | None = None,
    fp16_io: bool = False,
    accuracy: float | None = None,
    calibration: str | PathLike[str] | None = None,
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    verify: bool = True,
    save_repro: str | PathLike[str] | None = None,
    rtol: float | None = None,
    seed: int = 0,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    trust_pickle: bool = False,
    allow_nonfinite: bool = False,
    allow_guards: bool = False,
    progress: Progress = silent,
) -> Report:
    """Convert a model to an optimised ONNX file, and prove the file under ONNX Runtime.

    Args:
        source: a source ("timm:resnet18", "file.py:factory", "package.module:factory",
            "torchvision:NAME", "file.pt2"), or a model.
        args, kwargs: the inputs of a model, as in `passfx.optimize`; of a source, instead of its
            own.
        path: the file to write.
        arguments, weights, input_shapes: for a source: the factory's arguments, the weights to
            load (.safetensors, or what `torch.save` wrote; "none" for the start that timm or
            torchvision gives, where norms, biases and layer scales would be random, as after
            training), and "[NAME:]1x3x224x224[:int64]" for each random input.
        weights_key: which part of the file of weights to take, with dots between mappings
            ("ema.state_dict"); by default one that fits the model, and a note says which.
        strict: refuse weights that lack a key of the model, or have another one besides.
        dynamic_batch: the first axis of every input may vary; all together, where the traced graph
            is right for nothing else.
        dynamic_axes: the axes of each input (a parameter of `forward`) that may vary; a mapping
            says from where to where each of them does: {"x": {2: (8, 100), 3: (8, None)}}.
        dynamic_shapes: both in `torch.export.export`'s own form, instead of them.
        target, skip, only, verify, allow_nonfinite, save_repro: as in `passfx.optimize`.
        precision, opset, epilogues, fp16_io, accuracy, calibration, rtol, input_names,
            output_names, allow_guards: as in `Optimized.export`.
        seed: of random weights, inputs and samples.
        trust_pickle: load a "file.pt2", or a whole module as weights, even if that could run any
            code that is in it.
        progress: told the name of each stage as it starts.

    Raises:
        SourceError, CaptureError, VerificationError, ExportError, RuntimeUnavailableError: the
            message says what to do; no file is left behind.
    """
    spec = SourceSpec(
        source, args, kwargs, arguments, weights, input_shapes, dynamic_batch, dynamic_axes,
        dynamic_shapes, seed, trust_pickle, weights_key, strict,
    )  # fmt: skip
    settings = ExportSettings(
        precision, opset, epilogues, fp16_io, accuracy, calibration, verify, rtol, seed,
        input_names, output_names, allow_nonfinite, allow_guards,
    )  # fmt: skip
    plan = Plan(find_target(target), skip, only, verify, allow_nonfinite, save_repro)
    return convert_source(spec, plan, Path(path), settings, progress)


def convert_source(
    spec: SourceSpec, plan: Plan, path: Path, settings: ExportSettings, progress: Progress = silent
) -> Report:
    """Load, capture, rewrite, export and prove."""
    from passfx.jobs.export import export_file

    settings.check(path, plan.target)
    check_apart({"the output": path}, spec.files())
    found = optimize_source(spec, plan, progress)
    return export_file(found.module, found.captured, found.report, path, settings, progress)
