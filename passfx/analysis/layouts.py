"""How tensors lie: chains of reshapes and of transposes, and what reads memory as it lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from passfx.graph import ops
from passfx.graph.query import arguments, is_call
from passfx.graph.shapes import known_tensor, same_sizes, same_type

aten = torch.ops.aten

RESHAPES = (*ops.RESHAPES, aten.stack)  # of one


@dataclass(frozen=True)
class Shorter:
    """What some nodes come to: `source`, or one operator on it with one argument besides."""

    nodes: tuple[Node, ...]
    what: str
    source: Node
    operator: OpOverload | None = None
    argument: Sequence[Any] = ()


def reader_of_memory(node: Node) -> Node | None:
    """An operator after `node`, before any linear layer, that reads memory as it lies.

    A linear layer's result lies the same way whatever the strides of its input are.
    """
    seen, pending = {node}, [node]
    while pending:
        for user in pending.pop().users:
            if is_call(user, aten.as_strided, aten.view, aten.view_as_complex):
                return user
            if user not in seen and not is_call(user, aten.linear):
                seen.add(user)
                pending.append(user)
    return None


def first_input(node: Node) -> Node | None:
    """The first argument, or the only element of the list that it is.

    Whether it has the same type is for the caller to check.
    """
    source = node.args[0]
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    return source if isinstance(source, Node) else None


def between(source: Node, node: Node) -> tuple[Node, ...]:
    """The chain of first arguments from after `source` to `node`."""
    found = [node]
    while source not in found[0].all_input_nodes:
        first = first_input(found[0])
        assert first is not None
        found.insert(0, first)
    return tuple(found)


def moves_nothing(node: Node, order: Sequence[int]) -> bool:
    """Whether a permutation leaves every axis longer than 1 in its place among the others."""
    sizes = zip(order, known_tensor(node).shape, strict=True)
    long = [axis for axis, size in sizes if not same_sizes((size,), (1,))]
    return long == sorted(long)


def permutation(
    self: Node, dims: Sequence[int] | None = None, dim0: int = 0, dim1: int = 0
) -> list[int]:
    """The order of the axes in the result of a permute (`dims`) or transpose (`dim0`, `dim1`)."""
    order = list(range(known_tensor(self).ndim))
    if dims is not None:
        return [order[axis] for axis in dims]
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return order


def shorter_chain(node: Node) -> Shorter | None:
    """Consecutive reshapes, or consecutive transposes: as nothing, or as one operator."""
    if is_call(node, *RESHAPES):
        return _shorter_reshapes(node)
    return _shorter_transposes(node) if is_call(node, *ops.TRANSPOSES) else None


def _shorter_reshapes(node: Node) -> Shorter | None:
    chain = _chain(node, RESHAPES)
    for source in (chain[0].all_input_nodes[0], *chain[:-1]):
        if same_type(node, source):
            return Shorter(between(source, node), "reshapes that cancel", source)
    own = _own_part(chain)
    sizes = [size if isinstance(size, int) else -1 for size in known_tensor(node).shape]
    if len(own) < 2 or sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes):
        return None
    what, source = f"one reshape for {len(own)}", own[0].all_input_nodes[0]
    return Shorter(own, what, source, aten.reshape.default, sizes)


def _shorter_transposes(node: Node) -> Shorter | None:
    chain = _chain(node, ops.TRANSPOSES)
    for start, first in enumerate(chain):
        nodes, source = tuple(chain[start:]), first.all_input_nodes[0]
        if moves_nothing(node, _composed(nodes)) and same_type(node, source):
            return Shorter(nodes, "transposes that cancel", source)
    own = _own_part(chain)
    if len(own) < 2:
        return None
    what, source = f"one permute for {len(own)}", own[0].all_input_nodes[0]
    return Shorter(own, what, source, aten.permute.default, _composed(own))


def _composed(chain: Sequence[Node]) -> list[int]:
    """The order of the axes after all transposes of a chain."""
    order = permutation(**arguments(chain[0]))
    for item in chain[1:]:
        order = [order[axis] for axis in permutation(**arguments(item))]
    return order


def _own_part(chain: Sequence[Node]) -> tuple[Node, ...]:
    """The end of a chain whose intermediate results nothing else reads."""
    start = len(chain) - 1
    while start and len(chain[start - 1].users) == 1:
        start -= 1
    return tuple(chain[start:])


def _chain(node: Node, packets: tuple[Any, ...]) -> list[Node]:
    """`node` and the operators of the same family before it, first to last."""
    chain = [node]
    while (before := first_input(chain[0])) and is_call(before, *packets) and first_input(before):
        chain.insert(0, before)
    return chain
