"""Which dtype of an input makes a model fail."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from passfx.capture.dynamic import Inputs
from passfx.graph.query import dtype_name, floating_dtype

_MOST_INPUTS = 16  # of a model for which each is tried alone


def wanted_dtypes(
    model: torch.nn.Module, inputs: Inputs, call: Callable[[Inputs], Any]
) -> dict[str, tuple[Tensor, torch.dtype]]:
    """The inputs that fail in their own dtype and do not in another, with that one.

    Found by calling the model with inputs in its own floating dtype, in int64 and in bool: all
    that are of the wrong kind, then each alone.

    Args:
        call: the model, whose exceptions say that it does not take the inputs.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    own = floating_dtype(model)
    for places, dtype in _trials(leaves, own or torch.float32):
        changed = [
            _as(item, dtype) if place in places else item for place, item in enumerate(leaves)
        ]
        try:
            call(pytree.tree_unflatten(changed, spec))
        except Exception:
            continue
        names = _names(model, inputs)
        return {names[place]: (leaves[place], dtype) for place in places}
    return {}


def dtype_advice(model: torch.nn.Module, found: dict[str, tuple[Tensor, torch.dtype]]) -> str:
    """What to do about inputs that fail by their dtype; nothing where there are none."""
    if not found:
        return ""
    (first, (item, wanted)), *_ = found.items()
    told = ", ".join(
        f"{name} in {dtype_name(dtype)}, not {dtype_name(item.dtype)}"
        for name, (item, dtype) in found.items()
    )
    own = floating_dtype(model)
    if item.is_floating_point() and wanted == own:
        told += f", because its weights are in {dtype_name(own)}"
        told += "" if own == torch.float32 else " (model.float() makes them float32)"
    given = "in args or example_inputs()"
    if first.isidentifier() and item.ndim:
        sizes = "x".join(map(str, item.shape))
        given += f", or by --input-shape {first}:{sizes}:{dtype_name(wanted)}"
    return f"; it takes {told}: give it so, {given}"


def _trials(leaves: list[Any], own: torch.dtype) -> Iterator[tuple[list[int], torch.dtype]]:
    """Places of tensors, and a dtype that none of them has: all floats first, then each alone."""
    for dtype in (own, torch.int64, torch.bool):
        places = [
            place for place, item in enumerate(leaves)
            if isinstance(item, Tensor) and item.dtype != dtype
        ]  # fmt: skip
        floats = [place for place in places if leaves[place].is_floating_point()]
        if floats:
            yield floats, dtype
        if len(leaves) <= _MOST_INPUTS:
            yield from (([place], dtype) for place in places if [place] != floats)


def _as(item: Tensor, dtype: torch.dtype) -> Tensor:
    """In a dtype; numbers become zeros, which every embedding has."""
    return torch.zeros_like(item, dtype=dtype) if dtype == torch.int64 else item.to(dtype)


def _names(model: torch.nn.Module, inputs: Inputs) -> list[str]:
    """The parameter of `forward` that each flat input belongs to, with its place in it."""
    args, kwargs = inputs
    parameters = list(inspect.signature(model.forward).parameters)
    named = [*zip([*parameters, *map(str, range(len(args)))], args, strict=False), *kwargs.items()]
    return [
        name + pytree.keystr(path)
        for name, item in named
        for path, _ in pytree.tree_leaves_with_path(item)
    ]
