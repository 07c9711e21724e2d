"""The shape of an affine convolution, and what composing or adding two of them gives.

Everything about a collapse that can be decided without touching a weight is decided here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Sizes = Sequence[int | None]


@dataclass(frozen=True)
class Axis:
    """One spatial dimension: tap t of output p reads the input at stride·p − low + dilation·t.

    A tap's *offset* is −low + dilation·t. Padding may be negative, which is a crop.
    """

    taps: int = 1
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1

    @property
    def first(self) -> int:
        """The smallest offset."""
        return -self.low

    @property
    def last(self) -> int:
        """The largest offset."""
        return -self.low + self.dilation * (self.taps - 1)

    @property
    def step(self) -> int:
        """The distance between taps; 0 for a single one."""
        return self.dilation if self.taps > 1 else 0

    @property
    def excess(self) -> int:
        """How far the padded input exceeds the kernel: out = ⌊(in + excess) / stride⌋ + 1."""
        return self.low + self.high - self.dilation * (self.taps - 1) - 1

    def output_size(self, size: int) -> int:
        """The size of the result for an input of this size."""
        return (size + self.excess) // self.stride + 1

    def then(self, after: "Axis") -> "Axis":
        """The composition: offsets add up as offset1 + stride1 · offset2."""
        step = math.gcd(self.step, self.stride * after.step)
        low, high = self.low + self.stride * after.low, self.high + self.stride * after.high
        last = self.last + self.stride * after.last
        taps = (last + low) // step + 1 if step else 1
        return Axis(taps, self.stride * after.stride, low, high, step or 1)

    def plus(self, other: "Axis") -> "Axis":
        """The smallest axis that holds the taps of both, aligned by their offsets."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        step = math.gcd(self.step, other.step, self.first - first, other.first - first)
        taps = (last - first) // step + 1 if step else 1
        high = max(self.excess, other.excess) + 1 + last
        return Axis(taps, self.stride, -first, high, step or 1)

    def position(self, other: "Axis", offset: int = 0, stride: int = 1) -> slice:
        """Where the taps of `other`, at offset + stride · their offsets, are among these."""
        start = (offset + stride * other.first - self.first) // self.dilation
        jump = max(1, stride * other.step // self.dilation)
        return slice(start, start + jump * (other.taps - 1) + 1, jump)

    def then_failure(self, after: "Axis", biased: bool, size: int | None) -> str | None:
        """Why `then` is not exact for an input of this size (None: for every size), or None.

        `after` reads zeros where its padding lies; the composition has there what `self` would
        compute outside its own range. The two agree iff

        1. no such position has a tap of `self` inside the image: on the low side its largest offset
           is below its stride, on the high side the smallest tap of the first position beyond its
           range lies beyond the image;
        2. `self` adds no bias, or `after` reads no such position.
        """
        if size is None:
            beyond_high, covered = after.high > 0, self.excess + 1 + self.first >= 0
        else:
            middle = self.output_size(size)
            read = after.stride * (after.output_size(middle) - 1) + after.last
            beyond_high, covered = read >= middle, self.stride * middle + self.first >= size
        beyond_low = after.low > 0
        if (beyond_low and self.last >= self.stride) or (beyond_high and not covered):
            return "its padding is zeros where the operator before, past the border, has values"
        if biased and (beyond_low or beyond_high):
            return "the bias of the operator before would leak over its zero padding"
        return None

    def plus_failure(self, other: "Axis", size: int | None) -> str | None:
        """Why the two have not one stride and one size for an input of this size, or None."""
        if self.stride != other.stride:
            return f"the branches have strides {self.stride} and {other.stride}"
        if self.excess != other.excess and (
            size is None or self.output_size(size) != other.output_size(size)
        ):
            return "the branches have different sizes"
        return None


@dataclass(frozen=True)
class Geometry:
    """The shape of an affine convolution; without axes, of a linear layer.

    `biased` is whether the bias has a value other than zero.
    """

    channels_in: int
    channels_out: int
    axes: tuple[Axis, ...]
    groups: int = 1
    biased: bool = False

    @property
    def kernel(self) -> Ints:
        """The number of taps per spatial dimension."""
        return tuple(axis.taps for axis in self.axes)

    def output_sizes(self, sizes: Sequence[int]) -> Ints:
        """The spatial sizes of the result for an input of these."""
        return tuple(axis.output_size(size) for axis, size in zip(self.axes, sizes, strict=True))

    def then(self, after: "Geometry") -> "Geometry":
        """The shape of `after` applied to the result of `self`."""
        return Geometry(
            self.channels_in,
            after.channels_out,
            tuple(a.then(b) for a, b in zip(self.axes, after.axes, strict=True)),
            math.gcd(self.groups, after.groups),
            self.biased or after.biased,
        )

    def plus(self, other: "Geometry") -> "Geometry":
        """The shape of the sum of two results of one input."""
        return Geometry(
            self.channels_in,
            self.channels_out,
            tuple(a.plus(b) for a, b in zip(self.axes, other.axes, strict=True)),
            math.gcd(self.groups, other.groups),
            self.biased or other.biased,
        )

    def beside(self, other: "Geometry") -> "Geometry":
        """The shape of both results stacked."""
        axes = tuple(a.plus(b) for a, b in zip(self.axes, other.axes, strict=True))
        channels_out = self.channels_out + other.channels_out
        return Geometry(self.channels_in, channels_out, axes, 1, self.biased or other.biased)

    def then_failure(self, after: "Geometry", sizes: Sizes) -> str | None:
        """Why `then` is not exact for inputs of these spatial sizes, or None."""
        failures = (
            a.then_failure(b, self.biased, size)
            for a, b, size in zip(self.axes, after.axes, sizes, strict=True)
        )
        return next(filter(None, failures), None)

    def plus_failure(self, other: "Geometry", sizes: Sizes) -> str | None:
        """Why two results of inputs of these spatial sizes cannot be added as one form, or None."""
        failures = (
            a.plus_failure(b, size) for a, b, size in zip(self.axes, other.axes, sizes, strict=True)
        )
        return next(filter(None, failures), None)

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates for one input of these spatial sizes."""
        per_output = self.channels_in // self.groups * math.prod(self.kernel)
        return self.channels_out * math.prod(self.output_sizes(sizes)) * per_output
