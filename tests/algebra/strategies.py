"""Random affine forms for Hypothesis: axes, convolutions and transposed ones, and their inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from hypothesis import strategies as st
from torch import Tensor

from passfx.algebra.conv import Conv
from passfx.algebra.geometry import Axis

# What an axis and a convolution are drawn from, each at once: a choice costs more than a product.
AXES = st.sampled_from(
    [
        Axis(taps, stride, low, high, dilation if taps > 1 else 1)
        for taps, stride, low, high, dilation in product(
            *([1, 1, 2, 3, 4], [1, 1, 2, 3], [0, 0, 1, 2, -1], [0, 0, 1, 2, -1], [1, 1, 2, 3])
        )
    ]
)
TRAITS = st.sampled_from(
    list(
        product(
            *([1, 2, 4], [1, 2, 3], [False, False, True], [0.0, 1.0]),
            ["zeros"] * 5 + ["reflect", "replicate", "circular"],
        )
    )
)
CHANNELS = st.sampled_from([1, 2, 4])
ALIKE = st.sampled_from(list(product([True, True, True, True, False], repeat=2)))


@dataclass(frozen=True)
class Values:
    """Normally distributed float64 tensors from one seed: Hypothesis draws the seed alone."""

    generator: torch.Generator

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)


values = st.integers(0, 2**32 - 1).map(lambda seed: Values(torch.Generator().manual_seed(seed)))


def fitting(axis: Axis, size: int) -> Axis:
    """The axis with as many taps as give a result for an input of this size."""
    if size + axis.low + axis.high < 1:
        axis = replace(axis, low=0, high=0)
    taps = min(axis.taps, (size + axis.low + axis.high - 1) // axis.dilation + 1)
    return replace(axis, taps=taps, dilation=axis.dilation if taps > 1 else 1)


def images(least: int, most: int, rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """The spatial sizes of an input."""
    return st.sampled_from(list(product(range(least, most + 1), repeat=rank)))


@st.composite
def convs(
    draw: st.DrawFn,
    channels_in: int,
    axes: Sequence[Axis],
    sizes: Sequence[int],
    channels_out: int | None = None,
) -> Conv:
    """A convolution with the given axes, for inputs of these sizes.

    It has groups or not, zero taps or not, a bias or not, and a border of zeros or, where it pads
    and the input has values enough, another.
    """
    groups, multiple, sparse, biased, border = draw(TRAITS)
    drawn = draw(values)
    groups = math.gcd(groups, channels_in)
    out = channels_out or groups * multiple
    groups = math.gcd(groups, out)
    weight = drawn.randn(out, channels_in // groups, *(axis.taps for axis in axes))
    if sparse:
        weight = weight * (drawn.randn(*weight.shape[2:]) > 0)
    if not axes or not all(
        min(axis.low, axis.high) >= 0 and max(axis.low, axis.high) < size
        for axis, size in zip(axes, sizes, strict=True)
    ):
        border = "zeros"
    return Conv(weight, drawn.randn(out) * biased, tuple(axes), groups, border)


def forms(channels_in: int, sizes: Sequence[int]) -> st.SearchStrategy[Conv]:
    """A convolution whose result for inputs of these sizes is not empty."""
    axes = st.tuples(*(AXES.map(partial(fitting, size=size)) for size in sizes))
    return axes.flatmap(lambda drawn: convs(channels_in, drawn, sizes))


@st.composite
def cases(draw: st.DrawFn, rank: int) -> tuple[Conv, Tensor]:
    """A convolution of so many dimensions and an input of it."""
    channels, sizes = draw(CHANNELS), draw(images(5, 9, rank))
    return draw(forms(channels, sizes)), draw(values).randn(2, channels, *sizes)


@st.composite
def chains(draw: st.DrawFn, rank: int) -> tuple[Conv, Conv, Tensor]:
    """Two convolutions, the second for the result of the first, and an input of the first."""
    first, x = draw(cases(rank))
    sizes = first.geometry.output_sizes(x.shape[2:])
    return first, draw(forms(first.bias.numel(), sizes)), x


@st.composite
def branches(draw: st.DrawFn, rank: int) -> tuple[Conv, Conv, Tensor]:
    """Two convolutions of one input, mostly of one stride and of results of one size."""
    first, x = draw(cases(rank))
    sizes = x.shape[2:]
    drawn = [draw(AXES) for _ in sizes]
    one_stride, one_size = draw(ALIKE)
    if one_stride:
        drawn = [
            replace(axis, stride=own.stride) for axis, own in zip(drawn, first.axes, strict=True)
        ]
    drawn = [fitting(axis, size) for axis, size in zip(drawn, sizes, strict=True)]
    if one_stride and one_size:
        drawn = [
            replace(axis, high=axis.high + own.excess - axis.excess)
            for axis, own in zip(drawn, first.axes, strict=True)
        ]
    return first, draw(convs(x.shape[1], drawn, sizes, first.bias.numel())), x


@st.composite
def transposed(draw: st.DrawFn, rank: int) -> tuple[Conv, Tensor]:
    """A transposed convolution, its output padding below its stride, and an input of it."""
    channels = draw(CHANNELS)
    sizes, drawn = [], []
    for _ in range(rank):
        axis = draw(AXES)
        low = draw(st.integers(0, (axis.taps - 1) * axis.dilation))
        high = low - draw(st.integers(0, axis.stride - 1))
        drawn.append(replace(axis, low=low, high=high))
        missing = 1 + low + high - axis.dilation * (axis.taps - 1)  # of a result from a size of 1
        least = 1 + max(0, -(-missing // axis.stride))
        sizes.append(draw(st.integers(max(3, least), max(5, least))))
    form = replace(draw(convs(channels, drawn, sizes)), border="zeros", transposed=True)
    return form, draw(values).randn(2, channels, *sizes)
