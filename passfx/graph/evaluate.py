"""Run nodes of a graph on real tensors, in their own dtypes or entirely in float64.

Float64 is the reference that every fold, certificate and parity check compares with: floating
constants are widened on reading, dtype arguments that name a floating type are read as float64, an
operator that would take the default dtype is told to take float64, and no intermediate result is
ever rounded to a narrower type. Nothing here changes what other threads see.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch._ops import OpOverload
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


def evaluate(
    nodes: Iterable[Node],
    values: dict[Node, Any],
    *,
    double: bool = True,
    meant: Mapping[Node, Any] | None = None,
) -> None:
    """Compute `nodes`, given in topological order, into `values`.

    Args:
        nodes: calls and constants; their other inputs must be in `values` already.
        values: node → value; a constant that is present is not read from the module.
        double: compute in float64 throughout (the module docstring says how).
        meant: call → the arguments that it gets instead of its own.
    """
    meant = meant or {}

    def convert(item: Any) -> Any:
        return map_aggregate(item, widen) if double else item

    with torch.no_grad():
        for node in nodes:
            if node in values:
                continue
            if node.op == "get_attr":
                values[node] = convert(_attribute(node, double))
            else:
                assert node.op == "call_function" and callable(node.target), node.format_node()
                given = map_arg((meant.get(node, node.args), dict(node.kwargs)), values.__getitem__)
                args, kwargs = cast(tuple[Any, Any], given)
                if node.target is operator.getitem:  # of many results one is read
                    values[node] = convert(args[0][args[1]])
                    continue
                call = _call_wide if double else _call
                values[node] = call(node.target, convert(args), convert(kwargs))


def _attribute(node: Node, double: bool) -> Any:
    """A constant, or a branch of a condition or loop as a function of its operands."""
    found = constant(node) if is_constant(node) else None
    if found is None:
        found = attribute(cast(GraphModule, node.graph.owning_module), str(node.target))
    return partial(_run_branch, found, double) if isinstance(found, GraphModule) else found


def _run_branch(branch: GraphModule, double: bool, *operands: Any) -> Any:
    return _run(branch, operands, double, evaluate)


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_wide(function: Any, args: Any, kwargs: Any) -> Any:
    """A call whose results are wide, also where they have the process's default dtype.

    Operators take that dtype where nothing names another one: a tensor made from numbers, or
    integers divided. Such a call is made once more, told to compute in float64.
    """
    result = function(*args, **kwargs)
    if not any(map(_is_narrow, result if isinstance(result, list | tuple) else (result,))):
        return result
    if isinstance(function, OpOverload):
        schema = {item.name: item for item in function._schema.arguments}
        if "dtype" in schema and kwargs.get("dtype") is None:
            return function(*args, **{**kwargs, "dtype": torch.float64})
        if function == torch.ops.aten.where.Scalar:
            kept, *numbers = args
            wide = (torch.scalar_tensor(number, dtype=torch.float64) for number in numbers)
            return torch.where(kept, *wide)
        named = zip(schema, args, strict=False)
        args = [item if name == "condition" else _as_double(item) for name, item in named]
        kwargs = {name: _as_double(item) for name, item in kwargs.items()}
        result = function(*args, **kwargs)
    return map_aggregate(result, widen)


def _is_narrow(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.dtype in _WIDE


def _as_double(item: Any) -> Any:
    whole = isinstance(item, torch.Tensor) and not (item.is_floating_point() or item.is_complex())
    return item.double() if whole else item


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
    return tuple(_run(graph_module, inputs, double, compute))


def _run(
    graph_module: GraphModule, inputs: Iterable[Any], double: bool, compute: Callable[..., None]
) -> Any:
    remaining = iter(inputs)
    values: dict[Node, Any] = {}
    uses = {node: len(node.users) for node in graph_module.graph.nodes}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            given = next(remaining)
            values[node] = map_aggregate(given, widen) if double else given
        elif node.op == "output":
            return map_arg(node.args[0], values.__getitem__)
        else:
            compute([node], values, double=double)
        for used in node.all_input_nodes:
            uses[used] -= 1
        for seen in (node, *node.all_input_nodes):
            if not uses[seen]:
                values.pop(seen, None)
    raise AssertionError("a graph ends in an output node")
