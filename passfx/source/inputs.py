"""Example inputs: their shapes as the user writes them, random values, dynamic axes."""

import ast
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from passfx.errors import SourceError
from passfx.graph.query import dtype_name, floating_dtype
from passfx.source.spec import Source, SourceSpec

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip
SHAPE_FORM = "[NAME:]1x3x224x224[:int64]"
_SIZES = re.compile(r"0*[1-9]\d*([x,]0*[1-9]\d*)*", re.ASCII)
_COARSE = (torch.int64, torch.int32, torch.int16, torch.int8)  # of which 0 and 1 are drawn


@dataclass(frozen=True)
class InputShape:
    """A declared input.

    Attributes:
        name: a parameter of `forward`, or None for the next positional one.
        dtype: None for that of the model, or of the file.
    """

    name: str | None
    sizes: tuple[int, ...]
    dtype: torch.dtype | None = None


def parse_input_shape(text: str) -> InputShape:
    """`[NAME:]1x3x224x224[:DTYPE]` (commas too); a name may hold colons.

    Raises:
        SourceError: it is not of that form.
    """
    *words, last = text.replace(" ", "").split(":")
    dtype = getattr(torch, last, None) if words else None
    sizes = words.pop() if dtype in DTYPES else last
    if _SIZES.fullmatch(sizes):
        numbers = tuple(map(int, re.split("[x,]", sizes)))
        return InputShape(":".join(words) or None, numbers, dtype if dtype in DTYPES else None)
    near = difflib.get_close_matches(last, map(dtype_name, DTYPES), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SourceError(f"the input shape {text!r} is not of the form {SHAPE_FORM}{hint}")


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


def asked_shapes(model: torch.nn.Module) -> str:
    """The option that gives what `forward` takes, for each input that it must be given."""
    required = [
        name
        for name, item in inspect.signature(model.forward).parameters.items()
        if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    ]
    if len(required) < 2:
        return "--input-shape 1x3x224x224"
    return f"--input-shape NAME:1x3x224x224[:int64] for each of {', '.join(required)}"


def draw(sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random values that most models take.

    Floats are normal. Integers are 0 or 1, which every embedding has; those of `uint8` are the
    values of an image, 0 to 255.
    """
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    if dtype.is_complex:
        return torch.randn(sizes, generator=generator, dtype=dtype)
    high = 256 if dtype == torch.uint8 else 2
    return torch.randint(0, high, tuple(sizes), generator=generator).to(dtype)


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
    """Inputs of these shapes, by place and by name; the dtype is that of the model if not given.

    Raises:
        SourceError: two have one name.
    """
    names = [item.name for item in shapes if item.name is not None]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SourceError(f"--input-shape gives {repeated!r} twice")
    random = torch.Generator().manual_seed(seed)
    own = floating_dtype(model) or torch.float32
    drawn = [(item.name, draw(item.sizes, item.dtype or own, random)) for item in shapes]
    args = tuple(item for name, item in drawn if name is None)
    return args, {name: item for name, item in drawn if name is not None}


def drawing_notes(
    model: torch.nn.Module | ExportedProgram, shapes: Sequence[InputShape]
) -> tuple[str, ...]:
    """Sentences about what was drawn that is not what everyone expects."""
    notes, own = [], floating_dtype(model) or torch.float32
    if own != torch.float32 and not all(item.dtype for item in shapes):
        notes.append(f"inputs are drawn in the model's own {dtype_name(own)}")
    coarse = [item for item in shapes if item.dtype in _COARSE]
    if coarse:
        names = ", ".join(item.name or "x".join(map(str, item.sizes)) for item in coarse)
        notes.append(
            f"integers of {names} are drawn from 0 and 1; example_inputs() may give others"
        )
    return tuple(notes)


def bound_inputs(source: Source) -> dict[str, Any]:
    """The inputs of a module by the parameters of `forward` that take them.

    Raises:
        SourceError: `forward` does not take these.
    """
    module = cast(torch.nn.Module, source.model)
    signature = inspect.signature(module.forward)
    try:
        return signature.bind(*source.args, **source.kwargs).arguments
    except TypeError as error:
        raise SourceError(
            f"{source.name} does not take these inputs: {error}; it takes {signature}"
        ) from error


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
    inputs = bound_inputs(source)
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
