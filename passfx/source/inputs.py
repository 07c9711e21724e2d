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


def given_inputs(
    model: torch.nn.Module | ExportedProgram, args: Any, kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as they are given to Python functions: a sequence, a lone tensor, or a dict.

    A dict is the keyword inputs where all of its keys are names that `model` takes, else one input.

    Raises:
        SourceError: it is none of them, or holds shapes instead of tensors.
    """
    if not isinstance(kwargs, Mapping | None):
        raise SourceError(f"kwargs is a dict of inputs, not {type(kwargs).__name__}")
    named = dict(kwargs or {})
    if isinstance(args, torch.Tensor):
        return (args,), named
    if isinstance(args, Mapping):
        by_name = not named and _takes_names(model, args)
        return ((), dict(args)) if by_name else ((args,), named)
    if isinstance(args, str) or not isinstance(args, Sequence | None):
        raise SourceError(
            f"args is a tensor, a tuple of inputs or a dict of them, not {type(args).__name__}"
        )
    positional = tuple(args or ())
    if len(positional) > 1 and all(type(item) is int for item in positional):
        raise SourceError(f"args is a tuple of inputs, not a shape: give torch.randn{positional}")
    return positional, named


def _takes_names(model: torch.nn.Module | ExportedProgram, names: Mapping[Any, Any]) -> bool:
    if isinstance(model, ExportedProgram):
        spec = model.call_spec.in_spec
        return spec is not None and {*names} <= {*spec.child(1).context}
    parameters = inspect.signature(model.forward).parameters.values()
    taken = {item.name for item in parameters if item.kind is not item.VAR_POSITIONAL}
    takes_all = any(item.kind is item.VAR_KEYWORD for item in parameters)
    return all(isinstance(name, str) and (takes_all or name in taken) for name in names)


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


def dynamic_shapes(source: Source, given: SourceSpec) -> dict[str, Any]:
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
        return {
            axis: Dim.DYNAMIC(*ends) if ends and any(ends) else Dim.DYNAMIC
            for axis, ends in sorted((batch | dict(ranges)).items())
        }

    return {name: pytree.tree_map(partial(spec, name), item) for name, item in inputs.items()}
