"""Example inputs: their shapes as the user writes them, random values, dynamic axes."""

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from passfx.errors import SourceError
from passfx.source.spec import Source, SourceSpec


@dataclass(frozen=True)
class InputShape:
    """A declared input: `name` is a parameter of `forward`, or None for the next positional one."""

    name: str | None
    sizes: tuple[int, ...]


def parse_input_shape(text: str) -> InputShape:
    """`[NAME:]1x3x224x224` (commas too).

    Raises:
        SourceError: it is not of that form.
    """
    name, _, sizes = text.rpartition(":")
    try:
        parsed = tuple(int(size) for size in sizes.replace(",", "x").split("x"))
    except ValueError:
        parsed = ()
    if not parsed or min(parsed) < 1:
        raise SourceError(f"the input shape {text!r} is not of the form [NAME:]1x3x224x224")
    return InputShape(name or None, parsed)


def parse_argument(text: str) -> tuple[str, Any]:
    """`key=value`, the value as a Python literal where it is one: `8`, `(3, 3)`, `true`, `relu`.

    Raises:
        SourceError: it has no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SourceError(f"the argument {text!r} is not of the form key=value")
    words = {"true": "True", "false": "False", "none": "None"}
    try:
        return key, ast.literal_eval(words.get(value.lower(), value))
    except (ValueError, SyntaxError):
        return key, value


def as_inputs(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tuple is the positional arguments, a dict the keyword ones, anything else the only one."""
    if isinstance(given, dict):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, list | tuple) else ((given,), {})


def random_inputs(
    model: torch.nn.Module | ExportedProgram, shapes: Sequence[InputShape], seed: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Normally distributed inputs in the model's own floating dtype."""
    random = torch.Generator().manual_seed(seed)
    dtypes = (item.dtype for item in model.parameters() if item.dtype.is_floating_point)
    dtype = next(dtypes, torch.float32)
    drawn = [(item.name, torch.randn(item.sizes, generator=random).to(dtype)) for item in shapes]
    args = tuple(item for name, item in drawn if name is None)
    return args, {name: item for name, item in drawn if name is not None}


def dynamic_shapes(
    source: Source, given: SourceSpec, batch_size: Any = Dim.DYNAMIC
) -> dict[str, Any]:
    """`torch.export`'s form of "these axes of these inputs may vary".

    Args:
        batch_size: what the first axes of a dynamic batch are; one `Dim` makes them one size.
    """
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
    axes = given.dynamic_axes or {}
    for name in axes:
        if name not in inputs:
            raise SourceError(f"there is no input {name!r}; the inputs are {', '.join(inputs)}")

    def spec(name: str, item: Any) -> dict[int, Any] | None:
        if not isinstance(item, torch.Tensor):
            return None
        given_axes = axes.get(name, ())
        ranges = given_axes if isinstance(given_axes, Mapping) else dict.fromkeys(given_axes)
        batch: dict[int, Any] = {0: None} if given.dynamic_batch and item.ndim else {}
        for axis in ranges:
            if not 0 <= axis < item.ndim:
                raise SourceError(f"input {name!r} has {item.ndim} axes, so none is number {axis}")
        sizes = {
            axis: Dim.DYNAMIC(*ends) if ends and any(ends) else Dim.DYNAMIC
            for axis, ends in sorted((batch | dict(ranges)).items())
        }
        return {**sizes, 0: batch_size} if batch and 0 not in ranges else sizes

    return {name: pytree.tree_map(partial(spec, name), item) for name, item in inputs.items()}
