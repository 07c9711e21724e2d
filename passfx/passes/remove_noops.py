"""Operators that compute nothing."""

import operator
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from torch import ops
from torch.fx import Node

from passfx.graph.editor import Editor, Match
from passfx.graph.query import (
    arguments,
    constant,
    is_call,
    is_constant,
    op_name,
    same_sizes,
    same_type,
    tensor,
)
from passfx.passes.base import Found, Pass

aten = ops.aten


class RemoveNoops(Pass):
    """Remove every operator whose result equals its input.

    Decided from shapes, dtypes and values, never from the class of a module:
    dropout in eval mode; clone, contiguous, alias, detach; `to` the dtype and device that it has;
    view, reshape, flatten, expand, squeeze, permute, transpose, slice, roll, repeat, flip and pad
    that change nothing; chains of reshapes or of transposes that cancel (a chain that does not
    cancel becomes one operator); x·1, x÷1, x+0, x−0, x^1; a pool of kernel 1 and stride 1 or to
    the size it has; interpolation and pixel shuffle by 1; cat, stack or split of one; a reduction
    over axes of size 1 that keeps them; clamp without bounds; leaky_relu, prelu with slope 1.

    Kept:
    1. anything whose result differs in shape, dtype or device, so x·1 that promotes or broadcasts;
    2. sizes that are equal only for some values of a dynamic dimension;
    3. float interpolation factors other than 1, even where the rounded size is the same;
    4. what decides how memory lies under an operator that reads it so (as_strided,
       view_as_complex).
    """

    name = "remove-noops"

    def match(self, node: Node) -> Found:
        found = _simplification(node)
        return None if found is None or _decides_strides(node) else found

    def rewrite(self, editor: Editor, match: Match) -> Node:
        if isinstance(match.data, Node):
            return match.data
        target, *args = match.data
        return editor.call(target, *args)


def _simplification(node: Node) -> Match | None:
    for packets, rule in _RULES:
        if is_call(node, *packets):
            source = rule(node)
            if source is not None and same_type(node, source):
                return Match(
                    node, _between(source, node), f"{op_name(node)} changes nothing", source
                )
    if node.target is operator.getitem:
        return _single_part(node)
    return _shorter_chain(node)


def _decides_strides(node: Node) -> bool:
    """Whether an operator that reads memory as it lies comes after, before any linear layer.

    A linear layer's result lies the same way whatever the strides of its input are.
    """
    seen, pending = {node}, [node]
    while pending:
        for user in pending.pop().users:
            if is_call(user, aten.as_strided, aten.view, aten.view_as_complex):
                return True
            if user not in seen and not is_call(user, aten.linear):
                seen.add(user)
                pending.append(user)
    return False


def _first(node: Node) -> Node | None:
    """The first argument, or the only element of the list that it is.

    Whether it has the same type is for the caller to check.
    """
    source = node.args[0]
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    return source if isinstance(source, Node) else None


def _in_eval(node: Node) -> Node | None:
    bound = arguments(node)
    inactive = bound.get("train", bound.get("training")) is False or bound["p"] == 0
    return _first(node) if inactive else None


def _neutral_right(identity: float) -> Callable[[Node], Node | None]:
    def rule(node: Node) -> Node | None:
        unrounded = arguments(node).get("rounding_mode") is None
        return _first(node) if unrounded and _is_filled(node.args[1], identity) else None

    return rule


def _neutral_either(identity: float) -> Callable[[Node], Node | None]:
    def rule(node: Node) -> Node | None:
        left, right = node.args[:2]
        if _is_filled(right, identity):
            return _first(node)
        scaled = arguments(node).get("alpha", 1) != 1
        return (
            right if not scaled and _is_filled(left, identity) and isinstance(right, Node) else None
        )

    return rule


def _is_filled(item: Any, number: float) -> bool:
    """Whether an operand is the number, or a constant tensor full of it."""
    if isinstance(item, Node):
        return is_constant(item) and bool((constant(item) == number).all())
    return isinstance(item, int | float) and item == number


def _permutation(node: Node) -> list[int]:
    """The order of the input's axes in the result of a permute or transpose."""
    fake, bound = tensor(node), arguments(node)
    assert fake is not None
    if is_call(node, aten.permute):
        return [axis % fake.ndim for axis in bound["dims"]]
    order = list(range(fake.ndim))
    if order:
        a, b = bound["dim0"], bound["dim1"]
        order[a], order[b] = order[b], order[a]
    return order


def _moves_nothing(node: Node, order: list[int]) -> bool:
    """Whether a permutation leaves every axis longer than 1 in its place among the others."""
    fake = tensor(node)
    assert fake is not None
    long = [axis for axis in order if not same_sizes((fake.shape[order.index(axis)],), (1,))]
    return long == sorted(long)


def _identity_permutation(node: Node) -> Node | None:
    return _first(node) if _moves_nothing(node, _permutation(node)) else None


def _zero_padding(node: Node) -> Node | None:
    return _first(node) if all(_is_filled(amount, 0) for amount in arguments(node)["pad"]) else None


def _zero_shifts(node: Node) -> Node | None:
    return (
        _first(node) if all(_is_filled(shift, 0) for shift in arguments(node)["shifts"]) else None
    )


def _short_flip(node: Node) -> Node | None:
    fake = tensor(node)
    assert fake is not None
    dims = arguments(node)["dims"]
    return _first(node) if all(same_sizes((fake.shape[axis],), (1,)) for axis in dims) else None


def _unit_pool(node: Node) -> Node | None:
    bound = arguments(node)
    unit = (
        _all(bound["kernel_size"], 1)
        and _all(bound["stride"] or bound["kernel_size"], 1)
        and _all(bound["padding"], 0)
        and bound.get("divisor_override") in (None, 1)
    )
    return _first(node) if unit else None


def _unit_interpolation(node: Node) -> Node | None:
    bound = arguments(node)
    factors = [
        factor
        for name, given in bound.items()
        if name.startswith("scale") and given is not None
        for factor in (given if isinstance(given, list | tuple) else [given])
    ]
    return _first(node) if all(_is_filled(factor, 1) for factor in factors) else None


def _unit_reduction(node: Node) -> Node | None:
    bound = arguments(node)
    source = tensor(node.args[0])
    dims = bound.get("dim")
    if source is None or not bound.get("keepdim") or not dims:
        return None
    axes = dims if isinstance(dims, list | tuple) else [dims]
    return _first(node) if all(same_sizes((source.shape[axis],), (1,)) for axis in axes) else None


def _unbounded(node: Node) -> Node | None:
    bound = arguments(node)
    low, high = bound.get("min", bound.get("min_val")), bound.get("max", bound.get("max_val"))
    return _first(node) if low in (None, -inf) and high in (None, inf) else None


def _unit_slope(node: Node) -> Node | None:
    return (
        _first(node)
        if _is_filled(arguments(node).get("negative_slope", arguments(node).get("weight")), 1)
        else None
    )


def _all(given: Any, number: int) -> bool:
    return all(item == number for item in (given if isinstance(given, list | tuple) else [given]))


_RESHAPES = (
    aten.reshape,
    aten.flatten,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
    aten.stack,  # of one
)
_TRANSPOSES = (aten.permute, aten.transpose)
_UNLESS_TYPE_CHANGES = (  # the identity exactly when the result has the type of its input
    *(aten.clone, aten.contiguous, aten.alias, aten.detach, aten.lift_fresh_copy),
    *(aten.to, aten._to_copy, aten.type_as),
    *_RESHAPES,
    *(aten.expand, aten.expand_as, aten.slice, aten.repeat, aten.tile),
    *(aten.cat, aten.hstack, aten.vstack),
    *(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d),
    *(aten.pixel_shuffle, aten.pixel_unshuffle),
)

_Rule = Callable[[Node], Node | None]
_RULES: tuple[tuple[tuple[Any, ...], _Rule], ...] = (
    (_UNLESS_TYPE_CHANGES, _first),
    (_TRANSPOSES, _identity_permutation),
    (
        (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout),
        _in_eval,
    ),
    ((aten.mul,), _neutral_either(1)),
    ((aten.div,), _neutral_right(1)),
    ((aten.add,), _neutral_either(0)),
    ((aten.sub,), _neutral_right(0)),
    ((aten.pow,), _neutral_right(1)),
    ((aten.pad, aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d), _zero_padding),
    ((aten.roll,), _zero_shifts),
    ((aten.flip,), _short_flip),
    ((aten.max_pool1d, aten.max_pool2d, aten.max_pool3d), _unit_pool),
    ((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), _unit_pool),
    (
        (
            aten.upsample_nearest1d,
            aten.upsample_nearest2d,
            aten.upsample_nearest3d,
            aten.upsample_linear1d,
            aten.upsample_bilinear2d,
            aten.upsample_bicubic2d,
            aten.upsample_trilinear3d,
            aten._upsample_nearest_exact1d,
            aten._upsample_nearest_exact2d,
            aten._upsample_nearest_exact3d,
        ),
        _unit_interpolation,
    ),
    ((aten.mean, aten.sum, aten.amax, aten.amin, aten.logsumexp), _unit_reduction),
    ((aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh), _unbounded),
    ((aten.leaky_relu, aten.prelu), _unit_slope),
)


_SPLITS = (aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split)
_ADAPTIVE_MAX_POOLS = (
    aten.adaptive_max_pool1d,
    aten.adaptive_max_pool2d,
    aten.adaptive_max_pool3d,
)


def _single_part(node: Node) -> Match | None:
    """The first and only part of a split, or the values of a pool to the size it has."""
    parts, index = node.args
    if index != 0 or not is_call(parts, *_SPLITS, *_ADAPTIVE_MAX_POOLS):
        return None
    assert isinstance(parts, Node)
    source = _first(parts)
    if source is None or not same_type(node, source):
        return None
    return Match(node, (parts, node), f"{op_name(parts)} changes nothing", source)


def _shorter_chain(node: Node) -> Match | None:
    """Consecutive reshapes, or consecutive transposes: as nothing, or as one operator."""
    if is_call(node, *_RESHAPES):
        return _shorter_reshapes(node)
    if is_call(node, *_TRANSPOSES):
        return _shorter_transposes(node)
    return None


def _shorter_reshapes(node: Node) -> Match | None:
    chain = _chain(node, _RESHAPES)
    for source in [_first(chain[0]), *chain[:-1]]:
        if same_type(node, source):
            return Match(node, _between(source, node), "reshapes that cancel", source)
    own, fake = _own_part(chain), tensor(node)
    assert fake is not None
    sizes = [size if isinstance(size, int) else -1 for size in fake.shape]
    if len(own) < 2 or sizes.count(-1) > 1 or (-1 in sizes and 0 in sizes):
        return None
    data = (aten.reshape.default, _first(own[0]), sizes)
    return Match(node, own, f"one reshape for {len(own)}", data)


def _shorter_transposes(node: Node) -> Match | None:
    chain = _chain(node, _TRANSPOSES)
    own = _own_part(chain)
    for start in range(len(chain)):
        source, order = _first(chain[start]), _composed(chain[start:])
        if _moves_nothing(node, order) and same_type(node, source):
            return Match(node, tuple(chain[start:]), "transposes that cancel", source)
    if len(own) < 2:
        return None
    data = (aten.permute.default, _first(own[0]), _composed(own))
    return Match(node, own, f"one permute for {len(own)}", data)


def _composed(chain: Sequence[Node]) -> list[int]:
    """The order of the axes after all transposes of a chain."""
    order = _permutation(chain[0])
    for item in chain[1:]:
        order = [order[axis] for axis in _permutation(item)]
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
    while (before := _first(chain[0])) and is_call(before, *packets) and _first(before):
        chain.insert(0, before)
    return chain


def _between(source: Any, node: Node) -> tuple[Node, ...]:
    """The chain of first arguments from after `source` to `node`."""
    found: list[Node] = [node]
    while source not in found[0].all_input_nodes:
        first = _first(found[0])
        assert first is not None
        found.insert(0, first)
    return tuple(found)
