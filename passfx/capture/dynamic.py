"""Dynamic sizes: examples that the tracer does not specialise, and names for its symbols."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from passfx.errors import CaptureError

Dims = list[tuple[torch.Tensor, int, Any]]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def widen_dynamic(
    model: torch.nn.Module, inputs: Inputs, dynamic_shapes: Any, found: Dims
) -> Inputs:
    """Expand every dynamic dimension of size 1 to 2, because the tracer specialises 0 and 1.

    Every dynamic dimension is added to `found` with the tensor that it belongs to.
    """
    args, kwargs = inputs
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        name = type(model).__name__
        raise CaptureError(f"{name}.forward does not take these inputs: {error}") from error
    if not dynamic_shapes:
        return inputs
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(bound.arguments, dynamic_shapes, strict=False))
    for name, item in bound.arguments.items():
        bound.arguments[name] = _widen(item, dynamic_shapes.get(name), found)
    by_name = {**bound.kwargs, **bound.arguments}
    return bound.args[: len(args)], {name: by_name[name] for name in kwargs}


def _widen(item: Any, dims: Any, found: Dims) -> Any:
    if isinstance(item, torch.Tensor):
        given = dims.items() if isinstance(dims, Mapping) else enumerate(dims or ())
        named = {
            axis: dim
            for axis, dim in given
            if not (isinstance(dim, int | None) or dim == Dim.STATIC)
        }
        for axis in named:
            if item.shape[axis] == 1:
                item = torch.cat([item, item], axis)
        found += [(item, axis, dim) for axis, dim in named.items()]
        return item
    children, spec = pytree.tree_flatten(item, is_leaf=lambda child: child is not item)
    if isinstance(item, Mapping) and isinstance(dims, Mapping):
        dims = [dims.get(key) for key in item]
    if not isinstance(dims, list | tuple) or len(dims) != len(children):
        return item  # where the two should agree, the tracer says how they do not
    return pytree.tree_unflatten(
        [_widen(*pair, found) for pair in zip(children, dims, strict=True)], spec
    )


def dim_names(graph_module: GraphModule, inputs: list[Any], dims: Dims) -> dict[str, str]:
    """A `Dim`'s own name; "batch" for an unnamed first axis, "NAME_AXIS" for another one."""
    names: dict[str, str] = {}
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    for node, given in zip(placeholders, inputs, strict=True):
        for item, axis, dim in dims:
            size = node.meta["val"].shape[axis] if item is given else None
            if isinstance(size, torch.SymInt) and str(size) not in names:
                unnamed = "batch" if axis == 0 else f"{node.name}_{axis}"
                name = dim.__name__ if isinstance(dim, Dim) else unnamed
                names[str(size)] = f"{node.name}_{name}" if name in names.values() else name
    return names


def resample(
    given: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    """A tensor of `shape` with elements drawn from `given`, so that they stay in its domain."""
    flat = given.detach().cpu().reshape(-1)
    if given.dtype.is_floating_point and (not flat.numel() or bool((flat == flat[0]).all())):
        return torch.randn(shape, generator=generator).to(given)
    chosen = torch.randint(0, max(1, flat.numel()), (math.prod(shape),), generator=generator)
    return flat[chosen].reshape(shape).to(given.device)
