"""Names for the inputs and outputs of a captured graph."""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from passfx.graph.query import tensor


def input_names(graph_module: GraphModule) -> tuple[str, ...]:
    """The parameters of `forward` that are tensors."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return tuple(str(node.target) for node in placeholders if tensor(node) is not None)


def output_names(graph_module: GraphModule, taken: Sequence[str]) -> tuple[str, ...]:
    """Names from the structure of the result: "output", "output_1", or the keys of a dict.

    A number is appended where an input or an earlier output has the name.
    """
    (results,) = graph_module.graph.output_node().args
    assert isinstance(results, list | tuple)
    spec = graph_module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(results), spec))
    names: list[str] = []
    for path, result in leaves:
        if tensor(result) is not None:
            keys = [_key_name(key) for key in path]
            named = keys and not keys[0].isdigit()
            wanted = "_".join(keys if named else ["output", *keys])
            tries = chain([wanted], (f"{wanted}_{number}" for number in count(1)))
            names.append(next(name for name in tries if name not in (*taken, *names)))
    return tuple(names)


def _key_name(key: Any) -> str:
    """A dict's key, a sequence's index, or an attribute's name."""
    return next(str(getattr(key, kind)) for kind in ("key", "idx", "name") if hasattr(key, kind))
