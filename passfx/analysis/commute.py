"""What may change places with what, and what that saves.

A *resampling* makes every output a weighted sum of positions of its own channel, with the same
weights in all channels: average pools, means over positions, interpolation. It commutes with what
maps the channels of each position alike, a 1×1 convolution or a map of each channel alone; with
their biases only where the weights of every output add up to 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, ops
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from passfx.analysis.cost import macs, node_seconds
from passfx.analysis.forms import forms
from passfx.graph.editor import Match, refuse
from passfx.graph.query import (
    CONVS,
    TRANSPOSED_CONVS,
    arguments,
    constant,
    hint,
    is_call,
    is_constant,
    known_tensor,
    tensor,
)
from passfx.record import Refusal
from passfx.target import Profile

aten = ops.aten

_POOLS = (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
_ADAPTIVE = (aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d)
_MAPS = (aten.batch_norm, aten.mul, aten.div, aten.add, aten.sub, aten.rsub)
_INTERPOLATIONS = (
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d),
    *(aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d),
    *(aten.upsample_trilinear3d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa),
    aten._upsample_bicubic2d_aa,
)


@dataclass(frozen=True)
class Resampling:
    """A pool or an interpolation of [batch, channels, *spatial].

    `is_average`: whether the weights of every output add up to 1.
    """

    node: Node
    source: Node
    is_average: bool

    @property
    def leak(self) -> str:
        """Why a bias does not pass through one that is no average."""
        return (
            f"the weights of {self.node.name} do not add up to 1, because it counts zeros or has "
            "a divisor of its own"
        )


def pool(node: Node) -> Resampling | None:
    """An average pool, or a mean over spatial dimensions; None for anything else.

    A window is averaged over what it holds of the image, unless it counts padding or is given
    another divisor. Where `ceil_mode` lets a window hang over the end, what hangs over beyond the
    padding is not counted (ATen/native/cpu/AvgPoolKernel.cpp).
    """
    if not is_call(node, *_POOLS, *_ADAPTIVE, aten.mean):
        return None
    source, out = node.args[0], tensor(node)
    given = tensor(source)
    if out is None or given is None or out.dtype != given.dtype or given.ndim < 3:
        return None
    assert isinstance(source, Node)
    bound = arguments(node)
    if is_call(node, aten.mean):
        dims = bound.get("dim") or ()
        is_spatial = bool(dims) and all(dim % given.ndim >= 2 for dim in dims)
        return Resampling(node, source, True) if is_spatial else None
    packets = _POOLS if is_call(node, *_POOLS) else _ADAPTIVE
    if not is_call(node, packets[given.ndim - 3] if given.ndim < 6 else None):
        return None
    padding = bound.get("padding", 0)
    padded = any(padding) if isinstance(padding, list | tuple) else padding != 0
    counts = padded and bound["count_include_pad"]
    return Resampling(node, source, not counts and bound.get("divisor_override") is None)


def interpolation(node: Node) -> Resampling | None:
    """An interpolation, nearest to bicubic, antialiased or not; None for anything else.

    Its weights add up to 1 at the borders too, where it repeats the last position or leaves out
    what lies beyond and weighs the others more (ATen/native/UpSample.h).
    """
    source = node.args[0] if is_call(node, *_INTERPOLATIONS) else None
    return Resampling(node, source, True) if isinstance(source, Node) else None


@dataclass(frozen=True)
class Layer:
    """A 1×1 convolution, and the norm that alone reads it, if there is one."""

    conv: Node
    norm: Node | None

    @property
    def source(self) -> Node:
        """What it convolves."""
        source = self.conv.args[0]
        assert isinstance(source, Node)
        return source

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The convolution, then the norm."""
        return (self.conv,) if self.norm is None else (self.conv, self.norm)

    @property
    def weight(self) -> Tensor:
        """Shape [channels out, channels in / groups, 1, …]."""
        return constant(arguments(self.conv)["weight"])

    @property
    def bias(self) -> Node | None:
        """The bias of the convolution; None where it is zero."""
        bias = arguments(self.conv)["bias"]
        return bias if bias is not None and bool(constant(bias).any()) else None

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return int(arguments(self.conv)["groups"])

    @property
    def is_biased(self) -> bool:
        """Whether it adds anything to the product."""
        norm = channel_map(self.norm) if self.norm else None
        return self.bias is not None or (norm is not None and norm.is_biased)


def layer(node: Node) -> Layer | None:
    """The layer that ends in `node`: stride 1, without padding, of constant weights."""
    norm = node if is_call(node, aten.batch_norm) and channel_map(node) else None
    conv = norm.args[0] if norm else node
    if not isinstance(conv, Node) or not is_call(conv, *CONVS) or conv.kwargs:
        return None
    bound, fake = arguments(conv), tensor(conv)
    weight, bias = bound["weight"], bound["bias"]
    if fake is None or not is_constant(weight) or not (bias is None or is_constant(bias)):
        return None
    given = bound["padding"]
    padding = (0,) if isinstance(given, str) else given  # "same" is none for a kernel of 1
    shape = constant(weight).shape
    local = (
        fake.ndim == len(shape)
        and all(size == 1 for size in shape[2:])
        and all(step == 1 for step in bound["stride"])
        and not any(padding)
    )
    return Layer(conv, norm) if local and (norm is None or len(conv.users) == 1) else None


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
        """Whether the resampling leaves no spatial dimensions, [batch, channels]."""
        fake = tensor(self.resampling.node)
        return fake is not None and fake.ndim == 2

    @property
    def shift(self) -> Node | None:
        """The bias that has to be added after both, because it does not pass through."""
        through = self.resamples_first or self.resampling.is_average
        return None if through else self.layer.bias

    @property
    def macs(self) -> int:
        """The multiply-accumulates of the layer in its new place."""
        return self._sizes()[2] * math.prod(self.layer.weight.shape[1:])

    def seconds(self, profile: Profile) -> float:
        """The predicted time in the new order."""
        given, between, layered, out = self._sizes()
        size = known_tensor(self.nodes[-1]).element_size()
        weights = self.layer.weight.numel()
        weights += constant(self.layer.bias).numel() if self.layer.bias and not self.shift else 0
        ends = (between, out) if self.resamples_first else (given, between)
        pooled = (given, between) if self.resamples_first else (between, out)
        total = profile.seconds(self.macs, (sum(ends) + weights) * size)
        total += profile.seconds(0, sum(pooled) * size)
        if self.layer.norm is not None:
            through = self.resamples_first or self.resampling.is_average
            total += _map_seconds(layered if through else out, self.layer.norm, size, profile)
        if self.shift is not None:
            total += profile.seconds(0, (2 * out + constant(self.shift).numel()) * size)
        return total

    def _sizes(self) -> tuple[int, int, int, int]:
        """Elements of the input, of the new value between the two, of the layer's, of the result"""
        given, out = elements(_source(self.nodes)), elements(self.nodes[-1])
        count_out, count_in = self.layer.weight.shape[0], self.layer.weight.shape[1]
        count_in *= self.layer.groups
        if self.resamples_first:
            return given, out // count_out * count_in, out, out
        between = given // count_in * count_out
        return given, between, between, out


def exchange(
    node: Node, resampling: Callable[[Node], Resampling | None], profile: Profile
) -> Match | Refusal | None:
    """A layer and a resampling, ending in `node`, that take less time in the other order.

    Args:
        resampling: reads the kind that is looked for; `data` of the match is an `Exchange`.
    """
    found = _exchange(node, resampling)
    if found is None:
        return None
    first, last = found.nodes[0], found.nodes[-1]
    middle = found.resampling.source if found.resamples_first else first
    order = (last, first) if found.resamples_first else (found.layer.conv, first)
    now, then = sum(node_seconds(item, profile) for item in found.nodes), found.seconds(profile)
    what = f"{order[0].name} before {order[1].name}"
    if then >= now:
        if found.macs >= macs(found.layer.conv):
            return None
        return refuse(
            node, f"{what} would take {found.macs:,} MACs and {_micro(then)}, {_micro(now)} as is"
        )
    others = [user.name for user in middle.users if user not in found.nodes]
    if others:
        return refuse(node, f"{middle.name} is also read by {', '.join(others)}")
    if found.resamples_first and found.layer.is_biased and not found.resampling.is_average:
        return refuse(node, f"a bias would not pass through: {found.resampling.leak}")
    what = f"{what}: {_micro(then)} instead of {_micro(now)}"
    return Match(node, found.nodes, what, found)


def _exchange(node: Node, read: Callable[[Node], Resampling | None]) -> Exchange | None:
    if after := read(node):
        before = layer(after.source)
        found = Exchange(before, after, True) if before else None
    else:
        last = None if _is_normed(node) else layer(node)
        first = read(last.source) if last else None
        found = Exchange(last, first, False) if last and first else None
    if found is None:
        return None
    given, out = found.resampling.source, found.resampling.node
    keeps_layout = known_tensor(given).ndim == known_tensor(out).ndim
    becomes_linear = found.resamples_first and found.is_flat and found.layer.groups == 1
    return found if keeps_layout or becomes_linear else None


def _is_normed(node: Node) -> bool:
    """Whether a convolution is read by a norm alone, so that the layer ends in that."""
    return len(node.users) == 1 and any(
        is_call(user, aten.batch_norm) and layer(user) for user in node.users
    )


@dataclass(frozen=True)
class ChannelMap:
    """y[:, c] = scale[c] · x[:, c] + shift[c]: a norm, or arithmetic with constants."""

    node: Node
    source: Node
    is_biased: bool

    def operands(self, ndim: int, channels: slice = slice(None)) -> dict[Node, Tensor]:
        """Its constants as a map of some channels of a tensor of `ndim` dimensions reads them."""
        found = {}
        for read in self.node.all_input_nodes:
            if read is not self.source:
                flat = constant(read).double().reshape(-1)
                flat = flat if flat.numel() == 1 else flat[channels]
                is_norm = is_call(self.node, aten.batch_norm)
                found[read] = flat if is_norm else flat.reshape(-1, *(1,) * (ndim - 2))
        return found

    def seconds(self, count: int, profile: Profile, share: float = 1.0) -> float:
        """The predicted time for `count` elements, of a share of the channels."""
        return _map_seconds(
            count, self.node, known_tensor(self.node).element_size(), profile, share
        )


def channel_map(node: Node) -> ChannelMap | None:
    """A map of each channel, the second axis, alone; None for anything else."""
    fake = tensor(node)
    if fake is None or fake.ndim < 2 or not is_call(node, *_MAPS):
        return None
    for form in forms(node):
        if form.axes == fake.ndim - 2:
            return ChannelMap(node, form.source, form.geometry.biased)
    return None


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution, transposed or not, or a linear layer of [batch, channels]"""
    if not is_call(node, *CONVS, *TRANSPOSED_CONVS, aten.linear):
        return False
    bound, fake = arguments(node), tensor(node)
    weight, bias = bound["weight"], bound["bias"]
    constants = is_constant(weight) and (bias is None or is_constant(bias))
    return constants and fake is not None and fake.ndim == known_tensor(weight).ndim


def absorbs(node: Node) -> bool:
    """Whether a map of the channels of `node` folds into it, if nothing else reads `node`."""
    is_pool = is_call(node, *_POOLS) and next(forms(node), None) is not None
    return is_layer(node) or is_pool or channel_map(node) is not None


def rebound(
    node: Node, new: Mapping[Node, Node]
) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any]]:
    """The operator of a node with its arguments, some of the nodes among them replaced."""
    assert isinstance(node.target, OpOverload)
    args, kwargs = map_arg((node.args, node.kwargs), lambda read: new.get(read, read))
    return node.target, args, kwargs


def elements(node: Node) -> int:
    """The number of elements of a tensor, at the example's sizes."""
    return math.prod(map(hint, known_tensor(node).shape))


def _map_seconds(count: int, node: Node, size: int, profile: Profile, share: float = 1.0) -> float:
    constants = sum(constant(read).numel() for read in node.all_input_nodes if is_constant(read))
    return profile.seconds(0, (2 * count + share * constants) * size)


def _source(nodes: tuple[Node, ...]) -> Node:
    source = nodes[0].args[0]
    assert isinstance(source, Node)
    return source


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"
