"""What may change places with what.

A *resampling* makes every output a weighted sum of positions of its own channel, with the same
weights in all channels: average pools, means over positions, interpolation. It commutes with what
maps the channels of each position alike, a 1×1 convolution or a map of each channel alone; with
their biases only where the weights of every output add up to 1.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from passfx.analysis.leaves import forms
from passfx.graph.ops import ADAPTIVE_POOLS, ARITHMETIC, AVERAGE_POOLS, INTERPOLATIONS, LAYERS, aten
from passfx.graph.query import (
    arguments,
    constant,
    is_call,
    is_constant,
    op_name,
    parameters,
    tensor,
)
from passfx.graph.shapes import elements, ints, known_tensor
from passfx.target import Profile


@dataclass(frozen=True)
class Resampling:
    """A pool or an interpolation of [batch, channels, *spatial].

    Attributes:
        is_average: whether the weights of every output add up to 1.
        padding: the zeros at each end of every axis that it counts like positions of the image;
            with those its weights add up to 1. None where they do not, or where there are none.
    """

    node: Node
    source: Node
    is_average: bool
    padding: tuple[int, ...] | None = None

    @property
    def leak(self) -> str:
        """Why a bias does not pass through one that is no average."""
        return (
            f"the weights of {self.node.name} do not add up to 1, because it counts zeros or has "
            "a divisor of its own"
        )


def resampling(node: Node) -> Resampling | None:
    """A pool or an interpolation; None for anything else.

    An interpolation, nearest to bicubic, antialiased or not, has weights that add up to 1 at the
    borders too, where it repeats the last position or leaves out what lies beyond and weighs the
    others more (ATen/native/UpSample.h).
    """
    if is_call(node, *INTERPOLATIONS):
        return Resampling(node, node.all_input_nodes[0], True)
    return _pool(node)


def _pool(node: Node) -> Resampling | None:
    """An average pool, or a mean over spatial dimensions; None for anything else.

    A window is averaged over what it holds of the image, unless it counts padding or is given
    another divisor. Where `ceil_mode` lets a window hang over the end, what hangs over beyond the
    padding is not counted (ATen/native/cpu/AvgPoolKernel.cpp).
    """
    if not is_call(node, *AVERAGE_POOLS, *ADAPTIVE_POOLS, aten.mean):
        return None
    source, bound = node.all_input_nodes[0], arguments(node)
    given = known_tensor(source)
    if given.ndim < 3 or given.dtype != known_tensor(node).dtype:
        return None
    if is_call(node, aten.mean):
        dims = bound.get("dim") or ()
        is_spatial = bool(dims) and all(dim % given.ndim >= 2 for dim in dims)
        return Resampling(node, source, True) if is_spatial else None
    if not op_name(node).endswith(f"{given.ndim - 2}d"):
        return None
    padding, divides = ints(bound.get("padding", 0), given.ndim - 2), bound.get("divisor_override")
    counts = any(padding) and bound["count_include_pad"]
    if divides is not None or not counts:
        return Resampling(node, source, divides is None)
    return Resampling(node, source, False, None if bound["ceil_mode"] else padding)


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
        read = sum(elements(item) for item in self.node.all_input_nodes if is_constant(item))
        size = known_tensor(self.node).element_size()
        return profile.seconds(0, (2 * count + share * read) * size)


def channel_map(node: Node) -> ChannelMap | None:
    """A map of each channel, the second axis, alone; None for anything else."""
    fake = tensor(node)
    if fake is None or fake.ndim < 2 or not is_call(node, aten.batch_norm, *ARITHMETIC):
        return None
    found = (form for form in forms(node) if form.rank == fake.ndim - 2)
    return next((ChannelMap(node, form.source, form.geometry.biased) for form in found), None)


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution, transposed or not, or a linear layer of [batch, channels]"""
    if not is_call(node, *LAYERS) or not all(map(is_constant, parameters(node))):
        return False
    return known_tensor(node).ndim == known_tensor(arguments(node)["weight"]).ndim


def absorbs(node: Node) -> bool:
    """Whether a map of the channels of `node` folds into it, if nothing else reads `node`."""
    is_pool = is_call(node, *AVERAGE_POOLS) and bool(forms(node))
    return is_layer(node) or is_pool or channel_map(node) is not None
