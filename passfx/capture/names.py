"""Names for the inputs and outputs of a captured graph."""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passfx.graph.query import tensor, value
from passfx.graph.results import leaf_names


def input_names(graph_module: GraphModule) -> tuple[str, ...]:
    """The parameters of `forward` that are tensors."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return tuple(str(node.target) for node in placeholders if tensor(node) is not None)


def output_names(graph_module: GraphModule, taken: Sequence[str]) -> tuple[str, ...]:
    """Names from the structure of the result: "output", "output_1", keys of dicts, fields.

    A number is appended where an input or an earlier output has the name.
    """
    (results,) = graph_module.graph.output_node().args
    assert isinstance(results, list | tuple)
    spec = graph_module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    flat = [value(item) if isinstance(item, Node) else item for item in results]
    names: list[str] = []
    for keys, result in zip(_paths(flat, spec), flat, strict=True):
        if isinstance(result, torch.Tensor):
            named = keys and not keys[0].isdigit()
            wanted = "_".join(keys if named else ["output", *keys])
            tries = chain([wanted], (f"{wanted}_{number}" for number in count(1)))
            names.append(next(name for name in tries if name not in (*taken, *names)))
    return tuple(names)


def _paths(flat: list[Any], spec: pytree.TreeSpec) -> list[tuple[str, ...]]:
    """What leads to each result; its number where a class does not take the results back."""
    try:
        return leaf_names(pytree.tree_unflatten(flat, spec))
    except Exception:  # the user's code
        return [(str(place),) for place in range(len(flat))]
