"""Norms, scales and biases into the convolution or linear layer before them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, ops
from torch.fx import Node

from passfx.algebra import conv, linear
from passfx.algebra.channel import ChannelAffine
from passfx.graph.editor import Editor, Match, Refusal, refuse
from passfx.graph.query import (
    arguments,
    constant,
    is_call,
    is_constant,
    module_path,
    op_name,
    same_sizes,
    tensor,
)
from passfx.passes.base import Found, Pass

aten = ops.aten

_CONVS = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_PRODUCERS = (*_CONVS, *_TRANSPOSED, aten.linear)
_ARITHMETIC = (aten.mul, aten.div, aten.add, aten.sub, aten.rsub)


class FoldNorms(Pass):
    """Fold a batch norm, a scale or a bias into the convolution or linear layer before it.

    A batch norm with running statistics is y = scale · x + shift per channel, with
    scale = weight / sqrt(var + eps) and shift = bias - mean · scale. So are multiplication,
    division, addition and subtraction of a constant that is one number, or one per channel
    (FrozenBatchNorm2d, LayerScale). Then scale · (W·x + b) + shift is one layer with weight
    scale · W and bias scale · b + shift. Producers: conv1d/2d/3d, transposed (grouped too), linear.

    Kept, or refused:
    1. a norm that uses the statistics of the batch is not affine;
    2. a producer whose result is read elsewhere too must keep it;
    3. weights or statistics that are computed from inputs are not constants;
    4. a norm over another axis than the producer's channels, or one that changes the dtype;
    5. a folded weight that overflows its dtype (the certificate's finding).
    """

    name = "fold-norms"

    def match(self, node: Node) -> Found:
        step = _channel_step(node)
        if step is None:
            return None
        if isinstance(step, Refusal):
            return step
        producer = step.source
        weights = arguments(producer)
        if len(producer.users) > 1:
            others = ", ".join(sorted(user.name for user in producer.users if user is not node))
            return refuse(node, f"{producer.name} is also read by {others}")
        if not all(is_constant(item) for item in _weights(producer)):
            return refuse(node, f"the weights of {producer.name} are computed from inputs")
        dtypes = {tensor(item).dtype for item in (node, producer, weights["weight"])}  # type: ignore[union-attr]
        if len(dtypes) > 1:
            return refuse(node, f"{op_name(node)} changes the dtype of {producer.name}")
        what = f"{op_name(node)} into {op_name(producer)}"
        return Match(node, (producer, node), what, step.affine)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        producer = match.nodes[0]
        after: ChannelAffine = match.data()
        bound = arguments(producer)
        weight, bias = (
            None if item is None else constant(item) for item in (bound["weight"], bound["bias"])
        )
        assert weight is not None
        if is_call(producer, aten.linear):
            folded = linear.then_channel(weight, bias, after)
        else:
            transposed = is_call(producer, *_TRANSPOSED)
            folded = conv.then_channel(
                weight, bias, after, groups=bound["groups"], transposed=transposed
            )
        path = module_path(producer)
        for name, exact in zip(("weight", "bias"), folded, strict=True):
            bound[name] = editor.constant(exact, weight.dtype, f"{path}.{name}" if path else name)
        return editor.call(producer.target, *bound.values())  # type: ignore[arg-type]


@dataclass(frozen=True)
class _ChannelStep:
    """A per-channel affine node: the layer it follows, and its map, computed when asked for."""

    source: Node
    affine: Callable[[], ChannelAffine]


def _weights(producer: Node) -> list[Any]:
    bound = arguments(producer)
    return [item for item in (bound["weight"], bound["bias"]) if item is not None]


def _channel_step(node: Node) -> _ChannelStep | Refusal | None:
    if is_call(node, aten.batch_norm):
        return _norm_step(node)
    if is_call(node, *_ARITHMETIC):
        return _arithmetic_step(node)
    return None


def _norm_step(node: Node) -> _ChannelStep | Refusal | None:
    bound = arguments(node)
    source = bound["input"]
    if not is_call(source, *_PRODUCERS):
        return None
    if bound["training"]:
        return refuse(node, "it normalises with the statistics of the batch")
    names = ("weight", "bias", "running_mean", "running_var")
    if any(bound[name] is not None and not is_constant(bound[name]) for name in names):
        return refuse(node, "its statistics or parameters are computed from inputs")
    fake = tensor(source)
    if fake is None or fake.ndim - 1 - _spatial_dims(source) != 1:
        return refuse(node, f"it normalises axis 1, which is not the output axis of {source.name}")

    def affine() -> ChannelAffine:
        weight, bias, mean, var = (
            None if bound[name] is None else constant(bound[name]) for name in names
        )
        assert mean is not None and var is not None
        return ChannelAffine.batch_norm(weight, bias, mean, var, bound["eps"])

    return _ChannelStep(source, affine)


def _arithmetic_step(node: Node) -> _ChannelStep | Refusal | None:
    bound = arguments(node)
    left, right = bound["self"], bound["other"]
    if is_call(node, aten.rsub):
        left, right = right, left
    producers = [item for item in (left, right) if is_call(item, *_PRODUCERS)]
    if len(producers) != 1:
        return None
    source: Any = producers[0]
    other: Any = right if source is left else left
    if isinstance(other, Node) and not is_constant(other):
        return None
    channels = _channels(source)
    if channels is None or not _is_per_channel(other, source, node):
        return None
    reversed_operands = source is right
    if reversed_operands and is_call(node, aten.div):
        return None
    if bound.get("rounding_mode") is not None:
        return refuse(node, f"it rounds: rounding_mode={bound['rounding_mode']!r}")
    alpha = bound.get("alpha", 1)

    def affine() -> ChannelAffine:
        value = (
            constant(other).double()
            if isinstance(other, Node)
            else torch.tensor(float(other), dtype=torch.float64)
        )
        return _arithmetic(node, value, channels, reversed_operands, float(alpha))

    return _ChannelStep(source, affine)


def _arithmetic(
    node: Node, value: Tensor, channels: int, reversed_operands: bool, alpha: float
) -> ChannelAffine:
    if is_call(node, aten.mul):
        return ChannelAffine.scaling(value, channels)
    if is_call(node, aten.div):
        return ChannelAffine.scaling(value.reciprocal(), channels)
    sign = -alpha if is_call(node, aten.sub, aten.rsub) else alpha
    if not reversed_operands:
        return ChannelAffine.shifting(sign * value, channels)
    shift = ChannelAffine.shifting(value, channels)
    return ChannelAffine.scaling(torch.tensor(sign, dtype=torch.float64), channels).then(shift)


def _spatial_dims(producer: Node) -> int:
    weight = tensor(arguments(producer)["weight"])
    return 0 if weight is None or is_call(producer, aten.linear) else weight.ndim - 2


def _channels(producer: Node) -> int | None:
    fake = tensor(producer)
    return None if fake is None else int(fake.shape[-1 - _spatial_dims(producer)])


def _is_per_channel(other: Any, producer: Node, node: Node) -> bool:
    """Whether `other` is one number, or one per channel once broadcast to the producer's result."""
    out, result = tensor(producer), tensor(node)
    if out is None or result is None or not same_sizes(out.shape, result.shape):
        return False
    if not isinstance(other, Node):
        return isinstance(other, int | float) and not isinstance(other, bool)
    fake = tensor(other)
    assert fake is not None
    axis = -1 - _spatial_dims(producer)
    shape = (1,) * (out.ndim - fake.ndim) + tuple(fake.shape)
    return all(size == 1 for position, size in enumerate(shape) if position != out.ndim + axis)
