"""Which results of a graph share memory: with inputs, with constants, with each other.

Whether an operator copies can depend on how its input lies (`reshape`, `contiguous`), so the
operators between the results and the nearest new tensors are run on tensors without data, twice:
lying as in the example, and with the order of the axes reversed.
"""

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from passfx.graph.query import is_constant, reached, value
from passfx.graph.results import take_apart
from passfx.graph.shapes import hint

CONSTANT = "constant"

Pair = tuple[int, Hashable]
Aliases = tuple[frozenset[Pair], ...]  # one for each way in which the tensors may lie


def aliases(results: Sequence[Any], sources: Mapping[Node, Hashable]) -> Aliases:
    """What shares memory: (result, source), (result, earlier result).

    A result that overlaps itself, as an expanded one does, is a pair of itself.

    Args:
        results: what the graph returns, flat: nodes, and plain values.
        sources: placeholders and constants → what they are called in the pairs.
    """
    returned = {place: item for place, item in enumerate(results) if isinstance(item, Node)}
    passing: dict[Node, bool] = {}

    def read(node: Node) -> list[Node]:
        if node not in passing:
            passing[node] = _passes_on(node)
        return node.all_input_nodes if passing[node] else []

    chains = [node for result in {*returned.values()} for node in reached(result, read)]
    needed = {node: passing[node] for node in sorted({*chains})}
    return tuple(_pairs(returned, sources, needed, is_reversed) for is_reversed in (False, True))


def graph_aliases(graph: Graph) -> Aliases:
    """The aliases of a captured graph: inputs by their place, all constants as `CONSTANT`."""
    sources: dict[Node, Hashable] = {node: CONSTANT for node in graph.nodes if is_constant(node)}
    sources |= {
        node: f"input {place}" for place, node in enumerate(graph.find_nodes(op="placeholder"))
    }
    results = graph.output_node().args[0]
    assert isinstance(results, list | tuple)
    return aliases(results, sources)


@dataclass(frozen=True)
class FreshResults:
    """A forward hook: results at these places of the flat results are returned as copies."""

    places: frozenset[int]

    @classmethod
    def attach_to(cls, module: torch.fx.GraphModule, wanted: Aliases) -> None:
        """Copy what shares memory now and did not in `wanted`, in every call and every copy."""
        places: set[int] = set()
        for own, allowed in zip(graph_aliases(module.graph), wanted, strict=True):
            # Of two results the later one, and neither where the other is a copy already.
            lost = sorted(own - allowed, key=lambda pair: (isinstance(pair[1], int), pair[0]))
            for place, other in lost:
                if not places & {place, other}:
                    places.add(place)
        if places:
            cls(frozenset(places)).attach(module)

    def attach(self, module: torch.nn.Module) -> None:
        """Copy the results of a graph module and of its copies, to which hooks do not pass on."""
        module.register_forward_hook(self)
        module._register_deepcopy_hook(self.attach)  # type: ignore[operator]

    def __call__(self, module: torch.nn.Module, args: Any, result: Any) -> Any:
        """The result, with copies at the places."""
        flat, spec = take_apart(result)
        items = (item.clone() if place in self.places else item for place, item in enumerate(flat))
        return pytree.tree_unflatten(items, spec)


def _pairs(
    returned: Mapping[int, Node],
    sources: Mapping[Node, Hashable],
    needed: Mapping[Node, bool],
    is_reversed: bool,
) -> frozenset[Pair]:
    laid: dict[Node, Any] = {}
    for node, passes_on in needed.items():
        if passes_on:
            laid[node] = _passed_on(node, laid)
        else:
            laid[node] = _lie(value(node), is_reversed and sources.get(node) != CONSTANT)
    names = {_storage(laid[node]): name for node, name in sources.items() if node in laid}
    pairs: set[Pair] = set()
    seen: list[Pair] = []
    for place, node in returned.items():
        storage = _storage(laid[node])
        if storage is None:
            continue
        if storage in names:
            pairs.add((place, names[storage]))
        pairs |= {(place, earlier) for earlier, other in seen if other == storage}
        if _overlaps(laid[node]):
            pairs.add((place, place))
        seen.append((place, storage))
    return frozenset(pairs)


def _overlaps(item: Tensor) -> bool:
    return any(size > 1 and not step for size, step in zip(item.shape, item.stride(), strict=True))


def _passes_on(node: Node) -> bool:
    """Whether a call may return its input or a view of it.

    What the schema does not tell (dropout in eval mode, `type_as`) a run tells.
    """
    if node.target is operator.getitem:
        return True
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    if any(item.alias_info is not None for item in node.target._schema.returns):
        return True
    try:
        given = {read: _lie(value(read)) for read in node.all_input_nodes}
        results = pytree.tree_leaves(_run(node, given))
    except Exception:
        return False  # such as an operator whose sizes depend on data, which makes new tensors
    storages = {*map(_storage, pytree.tree_leaves(list(given.values())))} - {None}
    return not storages.isdisjoint(map(_storage, results))


def _passed_on(node: Node, laid: Mapping[Node, Any]) -> Any:
    """The result of an operator that may share memory with what it reads."""
    try:
        return _run(node, laid)
    except Exception:  # a view that does not exist of what lies so
        return laid[node.all_input_nodes[0]]


def _run(node: Node, given: Mapping[Node, Any]) -> Any:
    assert callable(node.target)
    args, kwargs = map_arg((node.args, dict(node.kwargs)), given.__getitem__)
    args, kwargs = map_aggregate((args, kwargs), _without_device)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _without_device(item: Any) -> Any:
    return torch.device("meta") if isinstance(item, torch.device) else item


def _lie(fake: Any, is_reversed: bool = False) -> Any:
    """A fake value at the example's sizes, on the device that has no data."""
    if isinstance(fake, list | tuple):
        return [_lie(item, is_reversed) for item in fake]
    if isinstance(fake, torch.SymInt):
        return hint(fake)
    if not isinstance(fake, Tensor):
        return fake
    sizes, steps = ([*map(hint, given)] for given in (fake.shape, fake.stride()))
    if is_reversed:
        return torch.empty(sizes[::-1], dtype=fake.dtype, device="meta").permute(
            tuple(reversed(range(len(sizes))))
        )
    return torch.empty_strided(sizes, steps, dtype=fake.dtype, device="meta")


def _storage(item: Any) -> int | None:
    return item.untyped_storage()._cdata if isinstance(item, Tensor) else None
