"""What each node is as an affine form of its input: the leaves that a collapse is made of.

A form has `axes` spatial dimensions after batch and channels; with none, it is a linear map of the
last axis. Its shape is known at once; its tensors are built when asked for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, ops
from torch.fx import Node

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv, average_pool, cat, identity, pointwise, swap_channels
from passfx.algebra.geometry import Axis, Geometry
from passfx.graph.query import (
    CONVS,
    TRANSPOSED_CONVS,
    arguments,
    constant,
    is_call,
    is_constant,
    same_sizes,
    tensor,
)

aten = ops.aten

RESHAPES = (aten.reshape, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze)
_POOLS = (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)


@dataclass(frozen=True)
class Form:
    """A node as an affine form of `source`: y = form(source)."""

    source: Node
    geometry: Geometry
    build: Callable[[], Conv]

    @property
    def axes(self) -> int:
        """The number of spatial dimensions; 0 for a map of the last axis."""
        return len(self.geometry.axes)


def spatial_sizes(node: Node, axes: int) -> tuple[int | None, ...]:
    """The sizes of a node's last `axes` dimensions, None for a dynamic one."""
    fake = tensor(node)
    assert fake is not None
    return tuple(size if isinstance(size, int) else None for size in fake.shape[fake.ndim - axes :])


def channels(node: Node, axes: int) -> int | None:
    """The size of the channel axis: the second before spatial dimensions, else the last."""
    fake = tensor(node)
    if fake is None or not fake.ndim or (axes and fake.ndim != axes + 2):
        return None
    size = fake.shape[1 if axes else -1]
    return size if isinstance(size, int) else None


def forms(node: Node) -> Iterator[Form]:
    """The forms of one node alone; a scale by one number has one for each layout.

    A node that computes in another floating dtype than its inputs' has none: folding it would round
    elsewhere.
    """
    fake = tensor(node)
    if not is_call(node) or fake is None or not fake.is_floating_point():
        return
    reads = [item for item in map(tensor, node.all_input_nodes) if item is not None]
    if any(item.is_floating_point() and item.dtype != fake.dtype for item in reads):
        return
    for packets, leaf in _LEAVES:
        if is_call(node, *packets):
            yield from leaf(node)


def not_affine(node: Node) -> str | None:
    """Why a norm or a layer has no form although it looks like one; None for anything else."""
    if not is_call(node, aten.batch_norm, aten.linear, *CONVS, *TRANSPOSED_CONVS):
        return None
    bound = arguments(node)
    if bound.get("training"):
        return "it normalises with the statistics of the batch"
    names = ("weight", "bias", "running_mean", "running_var")
    read = [bound[name] for name in names if isinstance(bound.get(name), Node)]
    if not all(map(is_constant, read)):
        return "its weights or statistics are computed in the graph"
    types = {fake.dtype for fake in map(tensor, (node, *node.all_input_nodes)) if fake is not None}
    if len(types) > 1:
        return f"it computes in {' and '.join(sorted(map(_dtype_name, types)))}"
    return None


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ints(given: Any, count: int) -> tuple[int, ...]:
    items = tuple(given) if isinstance(given, list | tuple) else (given,)
    return items * count if len(items) == 1 else items


def _conv(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    weight, bias = bound["weight"], bound["bias"]
    source, fake = bound["input"], tensor(bound["input"])
    if not is_constant(weight) or not (bias is None or is_constant(bias)) or fake is None:
        return
    kernel = constant(weight).shape[2:]
    if fake.ndim != len(kernel) + 2:
        return
    stride, dilation = (_ints(bound[name], len(kernel)) for name in ("stride", "dilation"))
    padding = bound["padding"]
    if isinstance(padding, str):
        spans = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
        pads = [(span // 2, span - span // 2) if padding == "same" else (0, 0) for span in spans]
    else:
        pads = [(pad, pad) for pad in _ints(padding, len(kernel))]
    axes = tuple(
        Axis(taps, step, low, high, gap)
        for taps, step, (low, high), gap in zip(kernel, stride, pads, dilation, strict=True)
    )

    def build() -> Conv:
        return _layer(weight, bias, axes, bound["groups"])

    yield _form(source, build, weight, bias, axes, bound["groups"])


def _transposed_conv(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    weight, bias, groups = bound["weight"], bound["bias"], bound["groups"]
    source, fake = bound["input"], tensor(bound["input"])
    if not is_constant(weight) or not (bias is None or is_constant(bias)) or fake is None:
        return
    shape = constant(weight).shape
    names = ("stride", "padding", "output_padding", "dilation")
    options = [_ints(bound[name], len(shape) - 2) for name in names]
    if fake.ndim != len(shape):
        return
    axes = tuple(
        Axis(taps, step, pad, pad - extra, gap)
        for taps, step, pad, extra, gap in zip(shape[2:], *options, strict=True)
    )
    count = shape[1] * groups
    biased = bias is not None and bool(constant(bias).any())
    geometry = Geometry(shape[0], count, axes, groups, biased, transposed=True)

    def build() -> Conv:
        w = swap_channels(constant(weight).double(), groups)
        b = w.new_zeros(count) if bias is None else constant(bias).double()
        return Conv(w, b, axes, groups, transposed=True)

    yield Form(source, geometry, build)


def _linear(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    weight, bias = bound["weight"], bound["bias"]
    if is_constant(weight) and (bias is None or is_constant(bias)):
        yield _form(bound["input"], lambda: _layer(weight, bias, (), 1), weight, bias, (), 1)


def _layer(weight: Node, bias: Node | None, axes: tuple[Axis, ...], groups: int) -> Conv:
    w = constant(weight).double()
    return Conv(
        w, w.new_zeros(w.shape[0]) if bias is None else constant(bias).double(), axes, groups
    ).crop()


def _form(
    source: Node,
    build: Callable[[], Conv],
    weight: Node,
    bias: Node | None,
    axes: tuple[Axis, ...],
    groups: int,
) -> Form:
    w = constant(weight)
    biased = bias is not None and bool(constant(bias).any())
    geometry = Geometry(w.shape[1] * groups, w.shape[0], axes, groups, biased)
    if math.prod(axis.taps for axis in axes) > 1 and bool((w == 0).any()):
        geometry = build().geometry
    return Form(source, geometry, build)


def _pointwise(source: Node, affine: Callable[[], ChannelAffine], axes: int, biased: bool) -> Form:
    count = channels(source, axes)
    assert count is not None
    geometry = Geometry(count, count, (Axis(),) * axes, count, biased)
    return Form(source, geometry, lambda: pointwise(affine(), axes))


def _batch_norm(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    source = bound["input"]
    names = ("weight", "bias", "running_mean", "running_var")
    params = [bound[name] for name in names]
    fake = tensor(source)
    if bound["training"] or fake is None or any(not (p is None or is_constant(p)) for p in params):
        return

    def affine() -> ChannelAffine:
        weight, bias, mean, var = (None if p is None else constant(p) for p in params)
        assert mean is not None and var is not None
        return ChannelAffine.batch_norm(weight, bias, mean, var, bound["eps"])

    yield _pointwise(source, affine, max(0, fake.ndim - 2), bool(affine().shift.any()))


def _arithmetic(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    if bound.get("rounding_mode") is not None:
        return
    left, right = bound["self"], bound["other"]
    alpha = float(bound.get("alpha", 1))
    if is_call(node, aten.rsub):
        left, right = right, left
    if _is_constant_operand(right) and isinstance(left, Node):
        source, other, scale, sign = left, right, 1.0, alpha
        if is_call(node, aten.sub):
            sign = -alpha
    elif _is_constant_operand(left) and isinstance(right, Node):
        source, other, scale, sign = right, left, alpha, 1.0
        if is_call(node, aten.sub, aten.rsub):
            scale = -alpha
        if is_call(node, aten.div):
            return
    else:
        return
    out, fake = tensor(node), tensor(source)
    if (
        out is None
        or fake is None
        or out.dtype != fake.dtype
        or not same_sizes(out.shape, fake.shape)
    ):
        return
    multiplies = is_call(node, aten.mul, aten.div)

    def operand() -> Tensor:
        if isinstance(other, Node):
            return constant(other).double()
        return torch.tensor(float(other), dtype=torch.float64)

    for axes in layouts(source):
        count = channels(source, axes)
        if count is None or not _is_per_channel(other, fake.ndim, axes):
            continue

        def affine(count: int = count) -> ChannelAffine:
            value = operand()
            if multiplies:
                value = value.reciprocal() if is_call(node, aten.div) else value
                return ChannelAffine.scaling(value, count)
            shift = ChannelAffine.shifting(sign * value, count)
            return ChannelAffine.scaling(value.new_tensor(scale), count).then(shift)

        yield _pointwise(source, affine, axes, not multiplies)


def _negation(node: Node) -> Iterator[Form]:
    source = node.args[0]
    assert isinstance(source, Node)
    for axes in layouts(source):
        count = channels(source, axes)
        if count is not None:
            minus = torch.tensor(-1.0, dtype=torch.float64)
            yield _pointwise(source, partial(ChannelAffine.scaling, minus, count), axes, False)


def layouts(node: Node) -> set[int]:
    """The numbers of spatial dimensions that an elementwise operator may have: none, or all."""
    fake = tensor(node)
    assert fake is not None
    return {0, max(0, fake.ndim - 2)}


def _is_constant_operand(item: Any) -> bool:
    if isinstance(item, Node):
        return is_constant(item)
    return isinstance(item, int | float) and not isinstance(item, bool)


def _is_per_channel(other: Any, ndim: int, axes: int) -> bool:
    """Whether an operand, broadcast, is one number or one number per channel."""
    if not isinstance(other, Node):
        return True
    fake = tensor(other)
    assert fake is not None
    shape = (1,) * (ndim - fake.ndim) + tuple(fake.shape)
    channel = 1 if axes else ndim - 1
    return all(size == 1 for dim, size in enumerate(shape) if dim != channel)


def _pool(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    source = bound["input"] if "input" in bound else bound["self"]
    fake = tensor(source)
    axes_count = 1 + _POOLS.index(node.target.overloadpacket)  # type: ignore[union-attr]
    count = channels(source, axes_count)
    if fake is None or count is None or bound["ceil_mode"]:
        return
    kernel = _ints(bound["kernel_size"], axes_count)
    stride = _ints(bound["stride"] or bound["kernel_size"], axes_count)
    padding = _ints(bound["padding"], axes_count)
    if any(padding) and not bound["count_include_pad"]:
        return
    axes = tuple(
        Axis(taps, step, pad, pad) for taps, step, pad in zip(kernel, stride, padding, strict=True)
    )
    divisor = bound.get("divisor_override") or math.prod(kernel)
    geometry = Geometry(count, count, axes, count, False)
    yield Form(source, geometry, lambda: average_pool(count, axes, divisor))


def _pad(node: Node) -> Iterator[Form]:
    bound = arguments(node)
    source, border = bound["self"], bound.get("mode", "constant")
    fake = tensor(source)
    if fake is None or (border == "constant" and bound.get("value") not in (None, 0, 0.0)):
        return
    amounts = bound["pad"]
    axes_count = fake.ndim - 2
    count = channels(source, axes_count) if axes_count > 0 else None
    if (
        count is None
        or len(amounts) > 2 * axes_count
        or not all(isinstance(a, int) for a in amounts)
    ):
        return
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    pairs += [(0, 0)] * (axes_count - len(pairs))
    axes = tuple(Axis(1, 1, low, high) for low, high in reversed(pairs))
    yield _moved(source, axes, count, "zeros" if border == "constant" else border)


def _slice(node: Node) -> Iterator[Form]:
    """Of a spatial axis: a crop, with a stride. Of the channels: a selection."""
    bound = arguments(node)
    source = bound["self"]
    fake, out = tensor(source), tensor(node)
    if fake is None or out is None:
        return
    axes_count = max(0, fake.ndim - 2)
    dim = bound["dim"] % fake.ndim
    count = channels(source, axes_count)
    size, result = fake.shape[dim], out.shape[dim]
    sizes = (count, size, result, bound["start"] or 0, bound["step"])
    if any(not isinstance(item, int) for item in sizes) or result < 1:
        return
    assert count is not None
    start, step = bound["start"] or 0, bound["step"]
    start = max(0, start + size if start < 0 else min(start, size))
    if axes_count and dim >= 2:
        axes = [Axis()] * axes_count
        axes[dim - 2] = Axis(1, step, -start, step * (result - 1) + 1 - size + start)
        yield _moved(source, tuple(axes), count)
    elif dim == (1 if axes_count else fake.ndim - 1) and step == 1:
        yield _selection(source, axes_count, start, int(result))


def _selection(source: Node, axes: int, start: int, count: int) -> Form:
    """Some of the channels."""
    total = channels(source, axes)
    assert total is not None
    local = (Axis(),) * axes
    sizes = (start, count, total - start - count)
    return Form(
        source,
        Geometry(total, count, local),
        lambda: identity(total, local).split(sizes)[1],
    )


def _reshape(node: Node) -> Iterator[Form]:
    """A reshape that keeps the last axis moves nothing along it."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = channels(source, 0), channels(node, 0)
    if before is not None and before == after:
        yield _moved(source, (), before)


def _pixel_unshuffle(node: Node) -> Iterator[Form]:
    """Space to depth: channel c·r² + r·i + j reads channel c at row i and column j of r × r."""
    bound = arguments(node)
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


def _moved(source: Node, axes: tuple[Axis, ...], count: int, border: str = "zeros") -> Form:
    geometry = Geometry(count, count, axes, count, False, border)
    return Form(source, geometry, lambda: replace(identity(count, axes), border=border))


def identity_form(node: Node, axes: int) -> Form | None:
    """A node as the identity of itself, in a layout; None where it has no such layout."""
    count = channels(node, axes)
    return None if count is None else _moved(node, (Axis(),) * axes, count)


_LEAVES: tuple[tuple[tuple[Any, ...], Callable[[Node], Iterator[Form]]], ...] = (
    (CONVS, _conv),
    (TRANSPOSED_CONVS, _transposed_conv),
    ((aten.linear,), _linear),
    ((aten.batch_norm,), _batch_norm),
    (_POOLS, _pool),
    ((aten.constant_pad_nd, aten.pad), _pad),
    ((aten.slice,), _slice),
    ((aten.pixel_unshuffle,), _pixel_unshuffle),
    (RESHAPES, _reshape),
    ((aten.mul, aten.div, aten.add, aten.sub, aten.rsub), _arithmetic),
    ((aten.neg,), _negation),
)


def compose(first: Form, after: Form) -> Form:
    """`after`, a form of the node that `first` stands for, as a form of the source of `first`."""
    return replace(
        first,
        geometry=first.geometry.then(after.geometry),
        build=lambda: first.build().then(after.build()),
    )


def add(a: Form, b: Form, scale: float) -> Form:
    """a + scale · b, two forms of one source."""

    def build() -> Conv:
        right = b.build()
        if scale != 1:
            right = right.scaled(
                ChannelAffine.scaling(torch.tensor(scale, dtype=torch.float64), right.bias.numel())
            )
        return a.build().plus(right)

    return replace(a, geometry=a.geometry.plus(b.geometry), build=build)


def stack(parts: Sequence[Form]) -> Form:
    """The results of forms of one source, one after the other along the channels."""
    geometry = reduce(Geometry.beside, (part.geometry for part in parts))
    return replace(parts[0], geometry=geometry, build=lambda: cat([p.build() for p in parts]))
