"""Operators that compute nothing."""

import operator
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from torch.fx import Graph, Node

from passfx.analysis import layouts
from passfx.analysis.layouts import MemoryReaders, Shorter, first_input, moves_nothing, permutation
from passfx.graph import ops
from passfx.graph.editor import Editor, Match
from passfx.graph.ops import aten
from passfx.graph.query import arguments, constant, is_call, is_constant, op_name
from passfx.graph.shapes import ints, known_tensor, same_sizes, same_type
from passfx.passes.base import Found, Pass


class RemoveNoops(Pass):
    """Remove every operator whose result equals its input.

    Decided from shapes, dtypes and values, never from the class of a module:
    dropout in eval mode; clone, contiguous, alias, detach; `to` the dtype and device that it has;
    view, reshape, flatten, expand, squeeze, permute, transpose, slice, roll, repeat, flip and pad
    that change nothing; chains of reshapes or of transposes that cancel (a chain that does not
    cancel becomes one operator); an axis that select drops and unsqueeze puts back (a slice); a
    concatenation within one (they become one); x·1, x÷1, x+0, x−0, x^1; a pool of kernel 1 and
    stride 1 or to the size it has; interpolation and pixel shuffle by 1; cat, stack or split of
    one; a reduction over axes of size 1 that keeps them; clamp without bounds; leaky_relu, prelu
    with slope 1.

    Kept:
    1. anything whose result differs in shape, dtype or device, so x·1 that promotes or broadcasts;
    2. sizes that are equal only for some values of a dynamic dimension;
    3. float interpolation factors other than 1, even where the rounded size is the same;
    4. what decides how memory lies under an operator that reads it so (as_strided,
       view_as_complex).
    """

    name = "remove-noops"

    def matches(self, graph: Graph) -> Iterator[Found]:
        readers = MemoryReaders(graph)
        for node in graph.nodes:
            yield self._match(node, readers)

    def match(self, node: Node) -> Found:
        return self._match(node, MemoryReaders(node.graph))

    def _match(self, node: Node, readers: MemoryReaders) -> Found:
        found = _single_part(node) if node.target is operator.getitem else _unchanged(node)
        for look in (layouts.shorter_chain, layouts.kept_axis, layouts.flat_concatenation):
            found = found or look(node)
        if found is None or readers.after(node) is not None:
            return None
        any_size = not any(is_call(item, *_OF_THIS_SIZE) for item in found.nodes)
        return Match(node, found.nodes, found.what, found, any_size)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        found: Shorter = match.data
        if found.operator is not None:
            return editor.call(found.operator, found.source, *found.arguments)
        assert isinstance(found.source, Node)
        return found.source


def _unchanged(node: Node) -> Shorter | None:
    """An operator whose result is one of its arguments."""
    for packets, position, is_noop in _NOOPS:
        if is_call(node, *packets):
            source: Any = node.args[1] if position else first_input(node)
            if same_type(node, source) and is_noop(**arguments(node)):
                return Shorter((node,), f"{op_name(node)} changes nothing", source)
    return None


def _single_part(node: Node) -> Shorter | None:
    """The first and only part of a split, or the values of a pool to the size it has."""
    parts, index = node.args
    if index != 0 or not is_call(parts, *ops.SPLITS, *_ADAPTIVE_MAX_POOLS):
        return None
    assert isinstance(parts, Node)
    source, what = first_input(parts), f"{op_name(parts)} changes nothing"
    return Shorter((parts, node), what, source) if source and same_type(node, source) else None


def _equals(item: Any, number: float) -> bool:
    """Whether an argument is the number, several of it, or a constant tensor full of it."""
    if isinstance(item, Node):
        return is_constant(item) and bool((constant(item) == number).all())
    if isinstance(item, list | tuple):
        return all(_equals(part, number) for part in item)
    return isinstance(item, int | float) and item == number


def _are_single(self: Node, dims: Any) -> bool:
    """Whether a tensor has the size 1 along these axes."""
    shape = known_tensor(self).shape
    return all(same_sizes((shape[dim],), (1,)) for dim in ints(dims))


def _keeps_single(self: Node, dim: Any = None, keepdim: bool = False, **_: Any) -> bool:
    return keepdim and bool(dim) and _are_single(self, dim)


def _scales_by_one(**bound: Any) -> bool:
    given = (item for name, item in bound.items() if name.startswith("scale"))
    return all(_equals(factors, 1) for factors in given if factors is not None)


def _is_unit_pool(kernel_size: Any, stride: Any, padding: Any, **others: Any) -> bool:
    windows = _equals(kernel_size, 1) and _equals(stride or kernel_size, 1) and _equals(padding, 0)
    return windows and others.get("divisor_override") in (None, 1)


def _is_unbounded(self: Node, **bounds: Any) -> bool:
    free = {"min": -inf, "min_val": -inf, "max": inf, "max_val": inf}
    return all(bound in (None, free[name]) for name, bound in bounds.items())


_SAME_VALUES = (  # the identity exactly when the result has the type of its input
    *(*ops.COPIES, *layouts.VIEWS, *ops.ADAPTIVE_POOLS, *ops.SHUFFLES, aten.lift_fresh_copy),
    *(aten.type_as, aten.expand, aten.expand_as, aten.slice, aten.repeat, aten.tile),
    *(aten.cat, aten.hstack, aten.vstack),
)
_DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)
_POOLS = (aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, *ops.AVERAGE_POOLS)
_ADAPTIVE_MAX_POOLS = (aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
_REDUCTIONS = (aten.mean, aten.sum, aten.amax, aten.amin, aten.logsumexp)

# Operators that compute nothing, or can be written shorter, because of the sizes at hand.
_OF_THIS_SIZE = (
    *(*layouts.VIEWS, *ops.TRANSPOSES, *ops.ADAPTIVE_POOLS, *_ADAPTIVE_MAX_POOLS, *_REDUCTIONS),
    *(
        *ops.SPLITS,
        *ops.INTERPOLATIONS,
        aten.expand,
        aten.expand_as,
        aten.slice,
        aten.repeat,
        aten.tile,
        aten.flip,
    ),
)

# Operators; the position of the argument that their result equals where it has the same type, and
# a predicate holds of their arguments, by the names in their schema.
_NOOPS: tuple[tuple[tuple[Any, ...], int, Callable[..., bool]], ...] = (
    (_SAME_VALUES, 0, lambda **_: True),
    (ops.TRANSPOSES, 0, lambda self, **dims: moves_nothing(self, permutation(self, **dims))),
    (_DROPOUTS, 0, lambda p, train, **_: train is False or p == 0),
    ((aten.mul,), 0, lambda other, **_: _equals(other, 1)),
    ((aten.mul,), 1, lambda self, **_: _equals(self, 1)),
    ((aten.div,), 0, lambda other, **kept: not kept.get("rounding_mode") and _equals(other, 1)),
    ((aten.pow,), 0, lambda exponent, **_: _equals(exponent, 1)),
    ((aten.add, aten.sub), 0, lambda other, **_: _equals(other, 0)),
    ((aten.add,), 1, lambda self, alpha, **_: alpha == 1 and _equals(self, 0)),
    (ops.PADS, 0, lambda pad, **_: _equals(pad, 0)),
    ((aten.reflection_pad1d, aten.reflection_pad2d), 0, lambda padding, **_: _equals(padding, 0)),
    ((aten.roll,), 0, lambda shifts, **_: _equals(shifts, 0)),
    ((aten.flip,), 0, _are_single),
    (_POOLS, 0, _is_unit_pool),
    (ops.INTERPOLATIONS, 0, _scales_by_one),
    (_REDUCTIONS, 0, _keeps_single),
    (ops.CLAMPS, 0, _is_unbounded),
    ((aten.leaky_relu,), 0, lambda negative_slope, **_: _equals(negative_slope, 1)),
    ((aten.prelu,), 0, lambda weight, **_: _equals(weight, 1)),
)
