"""What each node is as an affine form of its input: the leaves that a collapse is made of."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import getitem
from typing import Any

import torch
from torch.fx import Node

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv, average_pool, pointwise, swap_channels
from passfx.algebra.geometry import Axis, Geometry
from passfx.analysis.forms import Form, channels, moved, picked, ranks
from passfx.graph import ops, query
from passfx.graph.ops import aten
from passfx.graph.query import arguments, constant, is_call, is_constant, op_name, parameters, value
from passfx.graph.shapes import dtypes, fixed, ints, known_tensor, same_type

Arguments = dict[str, Any]


def read(node: Node) -> tuple[Form, ...] | str:
    """The forms of one node alone, or why a norm or a layer has none although it looks like one.

    A scale by one number has one form for each layout. A node that computes in another floating
    dtype than its inputs' has none: folding it would round elsewhere.
    """
    if node.target is getitem:
        return tuple(_part(node))
    leaf = next((leaf for packets, leaf in _LEAVES if is_call(node, *packets)), None)
    if leaf is None or not (own := dtypes((node,))):
        return ()
    bound, types = arguments(node), dtypes((node, *node.all_input_nodes))
    if is_call(node, *ops.LAYERS, aten.batch_norm):
        if bound.get("training"):
            return "it normalises with the statistics of the batch"
        if not all(map(is_constant, parameters(node))):
            return "its weights or statistics are computed in the graph"
        if len(types) > 1:
            return f"it computes in {' and '.join(sorted(map(query.dtype_name, types)))}"
    floating = {dtype for dtype in types if dtype.is_floating_point}
    return tuple(leaf(node, bound)) if floating == own else ()


def forms(node: Node) -> tuple[Form, ...]:
    """The forms of one node alone."""
    found = read(node)
    return () if isinstance(found, str) else found


def _conv(node: Node, bound: Arguments) -> Iterator[Form]:
    """A convolution, transposed or not."""
    kernel, padding = known_tensor(bound["weight"]).shape[2:], bound["padding"]
    rank = len(kernel)
    if known_tensor(bound["input"]).ndim != rank + 2:
        return
    stride, dilation = (ints(bound[name], rank) for name in ("stride", "dilation"))
    if isinstance(padding, str):
        spans = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
        pads = [(span // 2, span - span // 2) if padding == "same" else (0, 0) for span in spans]
    else:
        extras = ints(bound.get("output_padding", 0), rank)
        pads = [(a, a - extra) for a, extra in zip(ints(padding, rank), extras, strict=True)]
    options = zip(kernel, stride, pads, dilation, strict=True)
    axes = tuple(Axis(taps, step, low, high, gap) for taps, step, (low, high), gap in options)
    yield from _layer(node, bound, axes)


def _layer(node: Node, bound: Arguments, axes: tuple[Axis, ...] = ()) -> Iterator[Form]:
    """A layer of constant weights; outer taps that are zero everywhere come off its padding."""
    weight, bias, groups = constant(bound["weight"]), bound["bias"], bound.get("groups", 1)
    transposed = is_call(node, *ops.TRANSPOSED_CONVS)

    def build() -> Conv:
        w = swap_channels(weight.double(), groups) if transposed else weight.double()
        b = w.new_zeros(w.shape[0]) if bias is None else constant(bias).double()
        return Conv(w, b, axes, groups, transposed=transposed).normalized()

    counts = [weight.shape[1] * groups, weight.shape[0]]
    biased = bias is not None and bool(constant(bias).any())
    count_in, count_out = reversed(counts) if transposed else counts
    geometry = Geometry(count_in, count_out, axes, groups, biased, transposed=transposed)
    if math.prod(geometry.kernel) > 1 and bool((weight == 0).any()):
        geometry = build().geometry
    yield Form(bound["input"], geometry, build)


def _pointwise(source: Node, affine: Callable[[], ChannelAffine], rank: int, biased: bool) -> Form:
    count = channels(source, rank)
    assert count is not None
    geometry = Geometry(count, count, (Axis(),) * rank, count, biased)
    return Form(source, geometry, lambda: pointwise(affine(), rank), picks=range(count))


def _batch_norm(node: Node, bound: Arguments) -> Iterator[Form]:
    source = bound["input"]

    def affine() -> ChannelAffine:
        weight, bias = (bound[name] and constant(bound[name]) for name in ("weight", "bias"))
        mean, var = constant(bound["running_mean"]), constant(bound["running_var"])
        return ChannelAffine.batch_norm(weight, bias, mean, var, bound["eps"])

    yield _pointwise(source, affine, max(ranks(source)), bool(affine().shift.any()))


def _arithmetic(node: Node, bound: Arguments) -> Iterator[Form]:
    """a·left + b·right, left·right or left÷right, one of them constant."""
    left, right, alpha = bound["self"], bound["other"], float(bound.get("alpha", 1))
    a, b = (-alpha, 1.0) if is_call(node, aten.rsub) else (1.0, alpha)
    b = -b if is_call(node, aten.sub) else b
    divides, multiplies = is_call(node, aten.div), is_call(node, aten.mul, aten.div)
    if not _is_constant_operand(right) or not isinstance(left, Node):
        if divides:
            return
        left, a, right, b = right, b, left, a
    is_rounded = bound.get("rounding_mode") is not None
    if is_rounded or not _is_constant_operand(right) or not same_type(node, left):
        return

    for rank in ranks(left):
        count = channels(left, rank)
        if count is None or not _is_per_channel(right, known_tensor(left).ndim, rank):
            continue

        def affine(count: int = count) -> ChannelAffine:
            given = constant(right) if isinstance(right, Node) else float(right)
            value = torch.as_tensor(given, dtype=torch.float64)
            if multiplies:
                return ChannelAffine.scaling(value.reciprocal() if divides else value, count)
            shift = ChannelAffine.shifting(b * value, count)
            return ChannelAffine.scaling(value.new_tensor(a), count).then(shift)

        yield _pointwise(left, affine, rank, not multiplies)


def _negation(node: Node, bound: Arguments) -> Iterator[Form]:
    source, minus = bound["self"], torch.tensor(-1.0, dtype=torch.float64)
    for rank in ranks(source):
        if (count := channels(source, rank)) is not None:
            yield _pointwise(source, partial(ChannelAffine.scaling, minus, count), rank, False)


def _is_constant_operand(item: Any) -> bool:
    is_number = isinstance(item, int | float) and not isinstance(item, bool)
    return is_number or is_constant(item)


def _is_per_channel(other: Any, ndim: int, rank: int) -> bool:
    """Whether an operand, broadcast, is one number or one number per channel."""
    if not isinstance(other, Node):
        return True
    shape = known_tensor(other).shape
    channel = (1 if rank else ndim - 1) - (ndim - len(shape))
    return all(size == 1 for dim, size in enumerate(shape) if dim != channel)


def _pool(node: Node, bound: Arguments) -> Iterator[Form]:
    source, rank = node.all_input_nodes[0], int(op_name(node)[-2])  # avg_pool2d
    count = channels(source, rank)
    kernel, padding = ints(bound["kernel_size"], rank), ints(bound["padding"], rank)
    stride = ints(bound["stride"] or bound["kernel_size"], rank)
    counts = not any(padding) or bound["count_include_pad"]
    if count is None or bound["ceil_mode"] or not counts:
        return
    axes = tuple(map(Axis, kernel, stride, padding, padding))
    divisor = bound.get("divisor_override") or math.prod(kernel)
    geometry = Geometry(count, count, axes, count, False)
    yield Form(source, geometry, lambda: average_pool(count, axes, divisor))


def _pad(node: Node, bound: Arguments) -> Iterator[Form]:
    source, border, amounts = bound["self"], bound.get("mode", "constant"), bound["pad"]
    rank = max(ranks(source))
    count = channels(source, rank) if rank else None
    if count is None or (border == "constant" and bound.get("value") not in (None, 0, 0.0)):
        return
    if len(amounts) <= 2 * rank and all(isinstance(amount, int) for amount in amounts):
        pairs = [*zip(amounts[::2], amounts[1::2], strict=True)]
        pairs += [(0, 0)] * (rank - len(pairs))
        axes = [Axis(1, 1, low, high) for low, high in reversed(pairs)]
        yield moved(source, axes, count, "zeros" if border == "constant" else border)


def _slice(node: Node, bound: Arguments) -> Iterator[Form]:
    """Of a spatial axis: a crop, with a stride. Of the channels: a selection."""
    source, start, step = bound["self"], bound["start"] or 0, bound["step"]
    shape, rank = known_tensor(source).shape, max(ranks(source))
    dim = bound["dim"] % len(shape)
    count, size, result = channels(source, rank), shape[dim], known_tensor(node).shape[dim]
    sizes = (count, size, result, start, step)
    if count is None or any(not isinstance(item, int) for item in sizes) or result < 1:
        return
    start = max(0, start + size if start < 0 else min(start, size))
    if rank and dim >= 2:
        axes = [Axis()] * rank
        axes[dim - 2] = Axis(1, step, -start, step * (result - 1) + 1 - size + start)
        yield replace(moved(source, axes, count), any_size=_is_relative(bound))
    elif dim == (1 if rank else len(shape) - 1) and step == 1:
        yield picked(source, rank, range(start, start + result))


def _part(node: Node) -> Iterator[Form]:
    """A part of a split of the channels."""
    split, index = node.args
    if not is_call(split, *ops.SPLITS):
        return
    assert isinstance(split, Node) and isinstance(index, int)
    source, fakes = split.all_input_nodes[0], value(split)
    dim = arguments(split)["dim"] % known_tensor(source).ndim
    counts = [fixed(fake.shape[dim]) for fake in fakes]
    ends = [*accumulate(count for count in counts if count is not None)]
    for rank in ranks(source):
        is_channels = dim == (1 if rank else fakes[0].ndim - 1)
        if is_channels and len(ends) == len(counts) and channels(source, rank) == ends[-1]:
            yield picked(source, rank, range(ends[index] - fakes[index].shape[dim], ends[index]))


def _is_relative(bound: Arguments) -> bool:
    """Whether a slice starts and ends as far from the ends of the axis, whatever its size is."""
    start, end = bound["start"] or 0, bound["end"]
    to_the_end = end is None or end < 0 or end == sys.maxsize
    return start >= 0 and to_the_end and bound["step"] == 1


def _reshape(node: Node, bound: Arguments) -> Iterator[Form]:
    """A reshape that keeps the last axis moves nothing along it."""
    source = node.all_input_nodes[0]
    before, after = channels(source, 0), channels(node, 0)
    if before is not None and before == after:
        yield replace(moved(source, (), before), any_size=False)


def _pixel_unshuffle(node: Node, bound: Arguments) -> Iterator[Form]:
    """Space to depth: channel c·r² + r·i + j reads channel c at row i and column j of r × r."""
    source, factor = bound["self"], bound["downscale_factor"]
    count = channels(source, 2)
    if count is None:
        return
    axes = (Axis(factor, factor),) * 2

    def build() -> Conv:
        taps = torch.eye(factor**2, dtype=torch.float64).reshape(-1, 1, factor, factor)
        weight = taps.repeat(count, 1, 1, 1)
        return Conv(weight, weight.new_zeros(weight.shape[0]), axes, count)

    yield Form(source, Geometry(count, count * factor**2, axes, count), build)


_LEAVES: tuple[tuple[tuple[Any, ...], Callable[[Node, Arguments], Iterator[Form]]], ...] = (
    ((aten.linear,), _layer),
    (ops.LAYERS, _conv),
    ((aten.batch_norm,), _batch_norm),
    (ops.AVERAGE_POOLS, _pool),
    (ops.PADS, _pad),
    ((aten.slice,), _slice),
    ((aten.pixel_unshuffle,), _pixel_unshuffle),
    (ops.RESHAPES, _reshape),
    (ops.ARITHMETIC, _arithmetic),
    ((aten.neg,), _negation),
)
