"""How tensors lie: chains of reshapes and of transposes, and what reads memory as it lies."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import Any

from torch._ops import OpOverload
from torch.fx import Graph, Node

from passfx.graph.ops import RESHAPES, TRANSPOSES, aten
from passfx.graph.query import arguments, is_call
from passfx.graph.shapes import dtypes, fixed, known_tensor, same_sizes, same_type

VIEWS = (*RESHAPES, aten.stack)  # of one


@dataclass(frozen=True)
class Shorter:
    """What some nodes come to: `source`, or one operator on it, or on a list of sources."""

    nodes: tuple[Node, ...]
    what: str
    source: Node | list[Node]
    operator: OpOverload | None = None
    arguments: tuple[Any, ...] = ()


class MemoryReaders:
    """What reads memory as it lies after the nodes of a graph, found in one sweep.

    A pass asks while it rewrites: what reads memory after a node still does so after an edit, and
    nodes that came later are looked up by what reads them.
    """

    def __init__(self, graph: Graph) -> None:
        self._found: dict[Node, Node | None] = {}
        for node in reversed(graph.nodes):
            self.after(node)

    def after(self, node: Node) -> Node | None:
        """An operator after `node`, before any linear layer, that reads memory as it lies.

        A linear layer's result lies the same way whatever the strides of its input are.
        """
        if node not in self._found:
            found = map(self._at, node.users)
            self._found[node] = next((reader for reader in found if reader is not None), None)
        return self._found[node]

    def _at(self, user: Node) -> Node | None:
        if is_call(user, aten.as_strided, aten.view, aten.view_as_complex):
            return user
        return None if is_call(user, aten.linear) else self.after(user)


def first_input(node: Node) -> Node | None:
    """The first argument, or the only element of the list that it is.

    Whether it has the same type is for the caller to check.
    """
    source = node.args[0]
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    return source if isinstance(source, Node) else None


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
    turns = is_call(node, *TRANSPOSES)
    if not turns and not is_call(node, *VIEWS):
        return None
    chain = _chain(node, TRANSPOSES if turns else VIEWS)
    for start, first in enumerate(chain):
        nodes, source = tuple(chain[start:]), first.all_input_nodes[0]
        cancels = not turns or moves_nothing(node, _composed(nodes))
        if cancels and same_type(node, source):
            return Shorter(nodes, f"{'transposes' if turns else 'reshapes'} that cancel", source)
    own = _own_part(chain)
    source = own[0].all_input_nodes[0]
    if len(own) < 2:
        return None
    if turns:
        what = f"one permute for {len(own)}"
        return Shorter(own, what, source, aten.permute.default, (_composed(own),))
    numbers = [-1 if size is None else size for size in map(fixed, known_tensor(node).shape)]
    if numbers.count(-1) > 1 or (-1 in numbers and 0 in numbers):
        return None
    return Shorter(own, f"one reshape for {len(own)}", source, aten.reshape.default, (numbers,))


def kept_axis(node: Node) -> Shorter | None:
    """One position of an axis that is dropped and put back: a slice."""
    select = node.args[0] if is_call(node, aten.unsqueeze) else None
    if not isinstance(select, Node) or not is_call(select, aten.select) or len(select.users) > 1:
        return None
    source, dim, index = arguments(select).values()
    axes = known_tensor(source).ndim
    if arguments(node)["dim"] % axes != dim % axes or not isinstance(index, int):
        return None
    end = index + 1 if index != -1 else sys.maxsize
    cut = dim, index, end
    return Shorter((select, node), "one slice for two", source, aten.slice.Tensor, cut)


def flat_concatenation(node: Node) -> Shorter | None:
    """A concatenation of concatenations that nothing else reads: one."""
    parts, dim = _parts(node)
    inner = [part for part in parts if len(part.users) == 1 and _parts(part)[1] == dim]
    if not inner or len(dtypes((node, *parts))) > 1:
        return None
    flat = [read for part in parts for read in (_parts(part)[0] if part in inner else [part])]
    what = f"one concatenation for {len(inner) + 1}"
    return Shorter((*sorted(inner), node), what, flat, aten.cat.default, (dim,))


def _parts(node: Node) -> tuple[list[Node], int | None]:
    """What is concatenated, all of one number of dimensions, and along which axis."""
    if not is_call(node, aten.cat):
        return [], None
    parts, dim = arguments(node).values()
    axes = known_tensor(node).ndim
    is_plain = all(known_tensor(part).ndim == axes for part in parts)
    return (list(parts), dim % axes) if is_plain else ([], None)


def _composed(chain: Sequence[Node]) -> list[int]:
    """The order of the axes after all transposes of a chain."""
    orders = (permutation(**arguments(item)) for item in chain)
    return reduce(lambda order, after: [order[axis] for axis in after], orders)


def _own_part(chain: Sequence[Node]) -> tuple[Node, ...]:
    """The end of a chain whose intermediate results nothing else reads."""
    *inner, last = chain
    own = [*takewhile(lambda item: len(item.users) == 1, reversed(inner))]
    return *reversed(own), last


def _chain(node: Node, packets: tuple[Any, ...]) -> list[Node]:
    """`node` and the operators of the same family before it, first to last."""
    chain = [node]
    while (before := first_input(chain[0])) and is_call(before, *packets) and first_input(before):
        chain.insert(0, before)
    return chain
