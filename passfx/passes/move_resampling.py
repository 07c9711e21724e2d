"""Average pools or interpolation and 1×1 convolutions, in the cheaper order."""

import math
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from passfx.analysis.channels import ChannelMap, Resampling, channel_map, resampling
from passfx.analysis.cost import macs, node_seconds
from passfx.graph.editor import Editor, Match, beside, refuse
from passfx.graph.ops import CONVS, aten
from passfx.graph.query import arguments, constant, is_call, is_constant, parameters
from passfx.graph.shapes import elements, hint, known_tensor
from passfx.passes.base import Found, Pass
from passfx.target import Profile


class MoveResampling(Pass):
    """Pool or interpolate before a 1×1 convolution, or after it, whichever is predicted faster.

        pool(W·x + b) = W·pool(x) + b
        W·upsample(x) + b = upsample(W·x + b)

    W mixes the channels of one position, a pool or an interpolation mixes positions of one channel
    with weights that add up to 1, at the borders too. Before the convolution a pool leaves it fewer
    positions (the transitions of DenseNet); after one that narrows it has fewer channels to read
    (the pool branch of Inception). Before an interpolation that enlarges, the convolution has fewer
    positions; after one that shrinks, likewise. A norm right after the convolution moves with it.

    A pool that counts zeros, or has a divisor of its own, weighs with another sum than 1. Before
    one that counts zeros the convolution pads instead, and has its bias at the border too; then
    nothing is left behind:

        W·pool(zeros around x) + b = pool(W·(zeros around x) + b)

    Otherwise pool(W·x) = W·pool(x) still holds, and the bias is added after the pool. A mean that
    drops the spatial dimensions leaves a linear layer. Holds for nearest, nearest-exact, linear,
    bilinear, trilinear and bicubic interpolation, corners aligned or not, antialiased or not.

    Kept, or refused:
    1. an order that is predicted to be slower, with the figures where it would take fewer MACs;
    2. a value between the two that others read too;
    3. a bias before a pool whose weights do not add up to 1, which the pool would have weighed;
    4. convolutions with a stride, padding, a larger kernel or computed weights; maximum pools;
    5. a grouped convolution before a mean that drops the spatial dimensions.
    """

    name = "move-resampling"

    def match(self, node: Node) -> Found:
        found = _find_exchange(node)
        if found is None:
            return None
        profile, conv = self.target.profile, found.layer.conv
        first, last = found.nodes[0], found.nodes[-1]
        middle = found.resampling.source if found.resamples_first else first
        order = (last, first) if found.resamples_first else (conv, first)
        now, then = sum(node_seconds(item, profile) for item in found.nodes), found.seconds(profile)
        what = f"{order[0].name} before {order[1].name}"
        new, old = (f"{seconds * 1e6:.1f} µs" for seconds in (then, now))
        if then >= now:
            figures = f"would take {found.macs:,} MACs and {new}, {old} as is"
            return refuse(node, f"{what} {figures}") if found.macs < macs(conv) else None
        others = [user.name for user in middle.users if user not in found.nodes]
        if others:
            return refuse(node, f"{middle.name} is also read by {', '.join(others)}")
        if found.resamples_first and found.layer.is_biased and not found.resampling.is_average:
            return refuse(node, f"a bias would not pass through: {found.resampling.leak}")
        return Match(node, found.nodes, f"{what}: {new} instead of {old}", found)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        found: Exchange = match.data
        layer, moved = found.layer, found.resampling

        def resample(x: Node) -> Node:
            return editor.again(moved.node, {moved.source: x})

        def norm(x: Node) -> Node:
            return editor.again(layer.norm.node, {layer.norm.source: x}) if layer.norm else x

        if found.resamples_first:
            return norm(_emit_layer(editor, found, resample(layer.source)))
        result = _emit_layer(editor, found, moved.source)
        if found.padding:
            return _emit_unpadded(editor, moved, norm(result))
        if moved.is_average:
            return resample(norm(result))
        result = resample(result)
        if found.shift is not None:
            exact = constant(found.shift)
            shaped = exact.double().reshape(1, -1, *(1,) * (layer.weight.ndim - 2))
            shift = editor.constant(shaped, exact.dtype, beside(layer.conv, "shift"))
            result = editor.call(aten.add.Tensor, result, shift)
        return norm(result)


@dataclass(frozen=True)
class Layer:
    """A 1×1 convolution of `source`, and the norm that alone reads it, if there is one.

    Attributes:
        weight: shape [channels out, channels in / groups, 1, …].
        bias: that of the convolution; None where it is zero.
    """

    conv: Node
    norm: ChannelMap | None
    source: Node
    weight: Tensor
    bias: Node | None
    groups: int

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The convolution, then the norm."""
        return (self.conv,) if self.norm is None else (self.conv, self.norm.node)

    @property
    def is_biased(self) -> bool:
        """Whether it adds anything to the product."""
        return self.bias is not None or (self.norm is not None and self.norm.is_biased)


def _find_layer(node: Node) -> Layer | None:
    """The layer that ends in `node`: stride 1, without padding, of constant weights."""
    norm = channel_map(node) if is_call(node, aten.batch_norm) else None
    conv = norm.source if norm else node
    if not is_call(conv, *CONVS) or conv.kwargs or not all(map(is_constant, parameters(conv))):
        return None
    source, weight, bias, stride, padding, _, groups = arguments(conv).values()
    exact = constant(weight)
    is_batch = known_tensor(conv).ndim == exact.ndim
    is_local = is_batch and all(size == 1 for size in (*exact.shape[2:], *stride))
    is_padded = not isinstance(padding, str) and any(padding)  # "same" is none for a kernel of 1
    if not is_local or is_padded or (norm and len(conv.users) > 1):
        return None
    bias = bias if bias is not None and bool(constant(bias).any()) else None
    return Layer(conv, norm, source, exact, bias, groups)


@dataclass(frozen=True)
class Exchange:
    """A layer and a resampling that change places; `resamples_first` is the new order."""

    layer: Layer
    resampling: Resampling
    resamples_first: bool

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Both, in the order that they have now."""
        layer, resampling = self.layer.nodes, (self.resampling.node,)
        return (*layer, *resampling) if self.resamples_first else (*resampling, *layer)

    @property
    def is_flat(self) -> bool:
        """Whether the layer comes after one that leaves no spatial dimensions, [batch, channels]"""
        return self.resamples_first and known_tensor(self.resampling.node).ndim == 2

    @property
    def keeps_bias(self) -> bool:
        """Whether the layer adds its bias as before: it comes last, or an average follows it."""
        return self.resamples_first or self.resampling.is_average or bool(self.padding)

    @property
    def padding(self) -> tuple[int, ...] | None:
        """The zeros of the pool that the layer, which has a bias, pads in its place."""
        moves = not self.resamples_first and self.layer.is_biased
        return self.resampling.padding if moves else None

    @property
    def shift(self) -> Node | None:
        """The bias that has to be added after both, because it does not pass through."""
        return None if self.keeps_bias else self.layer.bias

    @property
    def between(self) -> int:
        """Elements of the new value between the two."""
        weight = self.layer.weight
        channels_in, channels_out = weight.shape[1] * self.layer.groups, weight.shape[0]
        if self.resamples_first:
            return elements(self.nodes[-1]) // channels_out * channels_in
        sizes = [*map(hint, known_tensor(self.resampling.source).shape[2:])]
        added = self.padding or (0,) * len(sizes)
        padded = math.prod(size + 2 * pad for size, pad in zip(sizes, added, strict=True))
        return hint(known_tensor(self.resampling.source).shape[0]) * channels_out * padded

    @property
    def macs(self) -> int:
        """The multiply-accumulates of the layer in its new place."""
        count = elements(self.nodes[-1]) if self.resamples_first else self.between
        return count * self.layer.weight[0].numel()

    def seconds(self, profile: Profile) -> float:
        """The predicted time in the new order."""
        given, out = elements(self.nodes[0].all_input_nodes[0]), elements(self.nodes[-1])
        size, layer, between = known_tensor(self.nodes[-1]).element_size(), self.layer, self.between
        resampled, layered = given + between, between + out
        if not self.resamples_first:
            resampled, layered = layered, resampled
        weights = layer.weight.numel()
        weights += elements(layer.bias) if layer.bias and not self.shift else 0
        total = profile.seconds(self.macs, (layered + weights) * size)
        total += profile.seconds(0, resampled * size)
        if layer.norm is not None:
            is_inner = self.keeps_bias and not self.resamples_first
            total += layer.norm.seconds(between if is_inner else out, profile)
        if self.shift is not None:
            total += profile.seconds(0, (2 * out + elements(self.shift)) * size)
        return total


def _find_exchange(node: Node) -> Exchange | None:
    """A layer and a resampling, one after the other and ending in `node`, in the other order."""
    if after := resampling(node):
        before = _find_layer(after.source)
        found = Exchange(before, after, True) if before else None
    else:
        last = None if _is_normed(node) else _find_layer(node)
        first = resampling(last.source) if last else None
        found = Exchange(last, first, False) if last and first else None
    if found is None:
        return None
    given, out = map(known_tensor, (found.resampling.source, found.resampling.node))
    becomes_linear = found.is_flat and found.layer.groups == 1
    return found if given.ndim == out.ndim or becomes_linear else None


def _is_normed(node: Node) -> bool:
    """Whether a convolution is read by a norm alone, so that the layer ends in that."""
    users = [user for user in node.users if is_call(user, aten.batch_norm) and _find_layer(user)]
    return len(node.users) == len(users) == 1


def _emit_layer(editor: Editor, found: Exchange, source: Node) -> Node:
    """The layer in its new place, without its norm: a linear one where no positions are left."""
    layer, bound = found.layer, arguments(found.layer.conv)
    bias = None if found.shift else layer.bias
    if found.padding:
        packet: Any = CONVS[len(found.padding) - 1]  # the overload that takes numbers
        grouped = (bound["dilation"], layer.groups) if layer.groups > 1 else ()
        options = bound["stride"], [*found.padding], *grouped
        return editor.call(packet.default, source, bound["weight"], bias, *options)
    if not found.is_flat:
        return editor.again(layer.conv, {layer.source: source, bound["bias"]: bias})
    exact, name = layer.weight, str(bound["weight"].target)
    flat = editor.constant(exact.double().flatten(1), exact.dtype, name)
    return editor.call(aten.linear.default, source, flat, bias)


def _emit_unpadded(editor: Editor, pool: Resampling, source: Node) -> Node:
    """The pool of what has its padding already."""
    bound = arguments(pool.node)
    packet = cast(OpOverload, pool.node.target)
    return editor.call(packet, source, bound["kernel_size"], bound["stride"])
