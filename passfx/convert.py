"""`passfx.convert`: from a source to a proven ONNX file."""

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from passfx.errors import SourceError
from passfx.optimized import Optimized, Plan, Progress, check_export, optimize_model, silent
from passfx.report.model import Report
from passfx.source import Source, load_source, parse_input_shape


def convert(
    source: str | torch.nn.Module | ExportedProgram,
    path: str | PathLike[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | PathLike[str] | None = None,
    input_shapes: Sequence[str] = (),
    dynamic_batch: bool = False,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    dynamic_shapes: Any = None,
    target: str = "cpu",
    precision: str = "fp32",
    opset: int = 20,
    epilogues: bool | None = None,
    fp16_io: bool = False,
    accuracy: float | None = None,
    calibration: str | PathLike[str] | None = None,
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    verify: bool = True,
    rtol: float | None = None,
    seed: int = 0,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Convert a model to an optimised ONNX file, and prove the file under ONNX Runtime.

    Args:
        source: a source ("timm:resnet18", "file.py:factory", "package.module:factory",
            "torchvision:NAME", "file.pt2"), or a model, whose inputs are then `args` and `kwargs`.
        path: the file to write.
        arguments, weights, input_shapes: for a source: the factory's arguments, a state dict to
            load, and "[NAME:]1x3x224x224" for each random input.
        dynamic_batch: the first axis of every input may vary.
        dynamic_axes: the axes of each input (a parameter of `forward`) that may vary.
        dynamic_shapes: both in `torch.export.export`'s own form, instead of them.
        target, skip, only, verify: as in `passfx.optimize`.
        precision, opset, epilogues, fp16_io, accuracy, calibration, rtol, input_names,
            output_names: as in `Optimized.export`.
        seed: of random weights, inputs and samples.
        progress: told the name of each stage as it starts.

    Raises:
        SourceError, CaptureError, VerificationError, ExportError, RuntimeUnavailableError: the
            message says what to do; no file is left behind.
    """
    check_export(Path(path), precision, opset, target, epilogues)
    optimized = load_and_optimize(
        source,
        args,
        kwargs,
        plan=Plan(target, tuple(skip), None if only is None else tuple(only), verify),
        arguments=arguments,
        weights=weights,
        input_shapes=input_shapes,
        dynamic_batch=dynamic_batch,
        dynamic_axes=dynamic_axes,
        dynamic_shapes=dynamic_shapes,
        seed=seed,
        progress=progress,
    )
    return optimized.export(
        path,
        precision,
        opset,
        epilogues=epilogues,
        fp16_io=fp16_io,
        accuracy=accuracy,
        calibration=calibration,
        verify=verify,
        rtol=rtol,
        seed=seed,
        input_names=input_names,
        output_names=output_names,
        progress=progress,
    )


def load_and_optimize(
    source: str | torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan,
    arguments: Mapping[str, Any] | None = None,
    weights: str | PathLike[str] | None = None,
    input_shapes: Sequence[str] = (),
    dynamic_batch: bool = False,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Optimized:
    """The first half of `convert`, all but the file; takes what `convert` takes."""
    if isinstance(source, str):
        if args or kwargs:
            raise SourceError(f"args and kwargs are for a model; {source} takes input_shapes")
        progress("load")
        loaded = load_source(
            source,
            arguments=arguments,
            weights=None if weights is None else Path(weights),
            input_shapes=[parse_input_shape(text) for text in input_shapes],
            seed=seed,
        )
    else:
        if arguments or weights or input_shapes:
            raise SourceError("arguments, weights and input_shapes are for a source, not a model")
        loaded = Source(type(source).__name__, source, tuple(args), dict(kwargs or {}))
    if dynamic_batch or dynamic_axes:
        if dynamic_shapes:
            raise SourceError("dynamic_shapes stands instead of dynamic_batch and dynamic_axes")
        dynamic_shapes = _dynamic_shapes(loaded, dynamic_batch, dynamic_axes or {})
    return optimize_model(
        loaded.model,
        loaded.args,
        loaded.kwargs,
        dynamic_shapes=dynamic_shapes,
        plan=plan,
        name=loaded.name,
        progress=progress,
    )


def _dynamic_shapes(
    source: Source, batch: bool, axes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """`torch.export`'s form of "these axes of these inputs may vary"."""
    if isinstance(source.model, ExportedProgram):
        raise SourceError(
            f"{source.name} is an exported program, whose dynamic sizes were fixed when it was made"
        )
    signature = inspect.signature(source.model.forward)
    try:
        inputs = signature.bind(*source.args, **source.kwargs).arguments
    except TypeError as error:
        raise SourceError(
            f"{source.name} does not take these inputs: {error}; it takes {signature}"
        ) from error
    for name in axes:
        if name not in inputs:
            raise SourceError(f"there is no input {name!r}; the inputs are {', '.join(inputs)}")

    def spec(name: str, item: Any) -> dict[int, Any] | None:
        if not isinstance(item, torch.Tensor):
            return None
        varying = {*axes.get(name, ()), *([0] if batch and item.ndim else [])}
        for axis in varying:
            if not 0 <= axis < item.ndim:
                raise SourceError(f"input {name!r} has {item.ndim} axes, so none is number {axis}")
        return dict.fromkeys(sorted(varying), Dim.DYNAMIC)

    return {
        name: pytree.tree_map(functools.partial(spec, name), item) for name, item in inputs.items()
    }
