"""Affine forms of nodes, and what composing, adding and stacking them gives.

A form of rank r has r spatial dimensions after batch and channels; with none, it is a linear map of
the last axis. Its shape is known at once; its tensors are built when asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import torch
from torch.fx import Node

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv, cat, identity
from passfx.algebra.geometry import Axis, Geometry
from passfx.graph.query import tensor
from passfx.graph.shapes import fixed, known_tensor


@dataclass(frozen=True)
class Form:
    """A node as an affine form of `source`: y = form(source).

    Attributes:
        any_size: whether it is that at every size of `source`, or at the captured one alone.
        picks: the channels of `source`, one after the other, that it maps each alone, as a slice of
            them does; None where it does something else.
    """

    source: Node
    geometry: Geometry
    build: Callable[[], Conv]
    any_size: bool = True
    picks: range | None = None

    @property
    def rank(self) -> int:
        """The number of spatial dimensions; 0 for a map of the last axis."""
        return len(self.geometry.axes)


def spatial_sizes(node: Node, rank: int) -> tuple[int | None, ...]:
    """The sizes of a node's last `rank` dimensions, None for a dynamic one."""
    shape = known_tensor(node).shape
    return tuple(map(fixed, shape[len(shape) - rank :]))


def channels(node: Node, rank: int) -> int | None:
    """The size of the channel axis: the second before spatial dimensions, else the last."""
    fake = tensor(node)
    if fake is None or not fake.ndim or (rank and fake.ndim != rank + 2):
        return None
    size = fake.shape[1 if rank else -1]
    return fixed(size)


def ranks(node: Node) -> set[int]:
    """The numbers of spatial dimensions that an elementwise operator may have: none, or all."""
    return {0, max(0, known_tensor(node).ndim - 2)}


def moved(source: Node, axes: Sequence[Axis], count: int, border: str = "zeros") -> Form:
    """Padded, cropped and strided positions of every channel of `source`, as they are."""
    geometry = Geometry(count, count, tuple(axes), count, False, border)
    picks = range(count) if geometry.is_pointwise else None
    return Form(
        source, geometry, lambda: replace(identity(count, axes), border=border), picks=picks
    )


def picked(source: Node, rank: int, picks: range) -> Form:
    """Some channels of `source`, one after the other."""
    count, local = channels(source, rank), (Axis(),) * rank
    assert count is not None
    sizes = picks.start, len(picks), count - picks.stop
    geometry = Geometry(count, len(picks), local)
    return Form(source, geometry, lambda: identity(count, local).split(sizes)[1], picks=picks)


def identity_form(node: Node, rank: int) -> Form | None:
    """A node as the identity of itself, in a layout; None where it has no such layout."""
    count = channels(node, rank)
    return None if count is None else moved(node, [Axis()] * rank, count)


def fitted(form: Form) -> Form:
    """The form as the sizes of its source allow to write it; see `Geometry.fitted`."""
    geometry = form.geometry.fitted(spatial_sizes(form.source, form.rank))
    if geometry == form.geometry:
        return form
    return replace(form, geometry=geometry, build=lambda: replace(form.build(), axes=geometry.axes))


def compose(first: Form, after: Form) -> Form:
    """`after`, a form of the node that `first` stands for, as a form of the source of `first`."""
    geometry = first.geometry.then(after.geometry)
    picks = first.picks
    if picks is not None:
        picks = after.picks and picks[after.picks.start : after.picks.stop]
    return Form(first.source, geometry, lambda: first.build().then(after.build()), picks=picks)


def add(a: Form, b: Form, scale: float) -> Form:
    """a + scale · b, two forms of one source."""

    def build() -> Conv:
        right, factor = b.build(), torch.tensor(scale, dtype=torch.float64)
        if scale != 1:
            right = right.scaled(ChannelAffine.scaling(factor, right.bias.numel()))
        return a.build().plus(right)

    return Form(a.source, a.geometry.plus(b.geometry), build)


def stack(parts: Sequence[Form]) -> Form:
    """The results of forms of one source, one after the other along the channels."""
    geometry = reduce(Geometry.beside, (part.geometry for part in parts))
    picks = _consecutive([part.picks for part in parts])
    if picks == range(geometry.channels_in):
        geometry = replace(geometry, groups=geometry.channels_in)

    def build() -> Conv:
        return cat([part.build() for part in parts]).split_into(geometry.groups)

    return Form(parts[0].source, geometry, build, picks=picks)


def _consecutive(parts: Sequence[range | None]) -> range | None:
    """Ranges that continue each other, as one."""
    found = [part for part in parts if part is not None]
    continued = all(before.stop == after.start for before, after in pairwise(found))
    return range(found[0].start, found[-1].stop) if continued and len(found) == len(parts) else None
