"""Run nodes of a graph on real tensors, in their own dtypes or entirely in float64.

Float64 is the reference that every fold, certificate and parity check compares with: floating
constants are widened on reading, dtype arguments that name a floating type are read as float64, so
is the default dtype, and no intermediate result is ever rounded to a narrower type.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from passfx.graph.query import attribute, constant, is_constant

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def widen(item: Any) -> Any:
    """A floating tensor or dtype in double precision; anything else as it is."""
    if isinstance(item, torch.Tensor):
        return item.detach().to(_WIDE.get(item.dtype, item.dtype))
    return _WIDE.get(item, item) if isinstance(item, torch.dtype) else item


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The dtype of a new tensor, and of an integer tensor divided, while the context is open."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def evaluate(nodes: Iterable[Node], values: dict[Node, Any], *, double: bool = True) -> None:
    """Compute `nodes`, given in topological order, into `values`.

    Args:
        nodes: calls and constants; their other inputs must be in `values` already.
        values: node → value; a constant that is present is not read from the module.
        double: compute in float64 throughout (the module docstring says how).
    """

    def convert(item: Any) -> Any:
        return map_aggregate(item, widen) if double else item

    with torch.no_grad(), _default_dtype(torch.float64) if double else nullcontext():
        for node in nodes:
            if node in values:
                continue
            if is_constant(node):
                values[node] = convert(constant(node))
            elif node.op == "get_attr":  # a branch of torch.cond
                module = cast(GraphModule, node.graph.owning_module)
                values[node] = attribute(module, str(node.target))
            else:
                assert node.op == "call_function" and callable(node.target), node.format_node()
                args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                values[node] = convert(node.target(*convert(args), **convert(kwargs)))


def run_flat(
    graph_module: GraphModule,
    inputs: Iterable[Any],
    *,
    double: bool = True,
    compute: Callable[..., None] = evaluate,
) -> tuple[Any, ...]:
    """Run a captured graph on its flat inputs; return its flat outputs.

    Values are dropped after their last use, so that memory stays near what the model itself needs.
    `compute` is called as `evaluate` is, for one node at a time.
    """
    remaining = iter(inputs)
    values: dict[Node, Any] = {}
    uses = {node: len(node.users) for node in graph_module.graph.nodes}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            given = next(remaining)
            values[node] = map_aggregate(given, widen) if double else given
        elif node.op == "output":
            return tuple(map_arg(node.args[0], values.__getitem__))
        else:
            compute([node], values, double=double)
        for used in node.all_input_nodes:
            uses[used] -= 1
        for seen in (node, *node.all_input_nodes):
            if not uses[seen]:
                values.pop(seen, None)
    raise AssertionError("a graph ends in an output node")
