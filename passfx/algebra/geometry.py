"""The shape of an affine convolution, and what composing or adding two of them gives.

Everything about a collapse that can be decided without touching a weight is decided here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Ints = tuple[int, ...]
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
        if self == Axis():  # keeps the dilation of one tap, which bounds an output padding
            return after
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

    def fitted(self, size: int | None) -> "Axis":
        """The same outputs for an input of this size, with no more cropped than that takes.

        A stride leaves out what lies behind its last output by itself.
        """
        if size is None or self.high >= 0:
            return self
        spare = self.stride - 1 - (size + self.excess) % self.stride
        return replace(self, high=min(0, self.high + spare))

    @property
    def is_cropped(self) -> bool:
        """Whether positions at an end are left out."""
        return self.low < 0 or self.high < 0

    @property
    def uncut(self) -> "Axis":
        """What is left to do once the crop is done."""
        return replace(self, low=max(0, self.low), high=max(0, self.high))

    @property
    def uncropped(self) -> "Axis":
        """The same outputs without negative padding: taps of weight zero in its place."""
        if not self.is_cropped:
            return self
        first, last = min(self.first, 0), self.last - min(self.high, 0)
        step = math.gcd(self.step, self.first - first, last - self.last) or 1
        return Axis((last - first) // step + 1, self.stride, -first, max(self.high, 0), step)

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
        alike = size is not None and self.output_size(size) == other.output_size(size)
        return None if alike or self.excess == other.excess else "the branches have different sizes"


@dataclass(frozen=True)
class Geometry:
    """The shape of an affine convolution; without axes, of a linear layer.

    Attributes:
        biased: whether the bias has a value other than zero.
        border: what padding reads: "zeros", or "reflect", "replicate" and "circular" values.
        transposed: whether it is a transposed convolution; its axes are then those of the
            convolution whose gradient it is, with the output padding taken off `high`.
    """

    channels_in: int
    channels_out: int
    axes: tuple[Axis, ...]
    groups: int = 1
    biased: bool = False
    border: str = "zeros"
    transposed: bool = False

    @property
    def kernel(self) -> Ints:
        """The number of taps per spatial dimension."""
        return tuple(axis.taps for axis in self.axes)

    @property
    def is_local(self) -> bool:
        """Whether each output reads the input at its own position alone."""
        return not self.transposed and all(axis == Axis() for axis in self.axes)

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a per-channel affine map."""
        return self.is_local and self.groups == self.channels_in == self.channels_out

    @property
    def is_padded(self) -> bool:
        """Whether it reads past the border."""
        return any(axis.low > 0 or axis.high > 0 for axis in self.axes)

    @property
    def crops(self) -> int:
        """How many axes it crops; what it reads of each is a slice, which it takes besides."""
        return 0 if self.transposed else sum(axis.is_cropped for axis in self.axes)

    @property
    def uncut(self) -> "Geometry":
        """What is left to do once the crops are done."""
        return replace(self, axes=tuple(axis.uncut for axis in self.axes)) if self.crops else self

    def fitted(self, sizes: Sizes) -> "Geometry":
        """The same for inputs of these spatial sizes, with no more cropped than that takes."""
        if self.transposed:
            return self
        pairs = zip(self.axes, sizes, strict=True)
        return replace(self, axes=tuple(axis.fitted(size) for axis, size in pairs))

    @property
    def is_padded_apart(self) -> bool:
        """Whether it takes a pad besides: for other values than zeros, or uneven amounts."""
        uneven = any(max(0, axis.low) != max(0, axis.high) for axis in self.axes)
        return not self.transposed and (uneven or (self.is_padded and self.border != "zeros"))

    def output_sizes(self, sizes: Sequence[int]) -> Ints:
        """The spatial sizes of the result for an input of these."""
        return tuple(axis.output_size(size) for axis, size in zip(self.axes, sizes, strict=True))

    def then(self, after: "Geometry") -> "Geometry":
        """The shape of `after` applied to the result of `self`."""
        biased = self.biased or after.biased
        if after.is_pointwise:
            return replace(self, biased=biased)
        axes = tuple(a.then(b) for a, b in zip(self.axes, after.axes, strict=True))
        counts, groups = (self.channels_in, after.channels_out), math.gcd(self.groups, after.groups)
        border = self.border if self.is_padded else after.border
        return Geometry(*counts, axes, groups, biased, border, after.transposed)

    def plus(self, other: "Geometry") -> "Geometry":
        """The shape of the sum of two results of one input."""
        return self._joined(other, self.channels_out, math.gcd(self.groups, other.groups))

    def beside(self, other: "Geometry") -> "Geometry":
        """The shape of both results stacked."""
        return self._joined(other, self.channels_out + other.channels_out, 1)

    def _joined(self, other: "Geometry", channels_out: int, groups: int) -> "Geometry":
        axes = tuple(a.plus(b) for a, b in zip(self.axes, other.axes, strict=True))
        biased = self.biased or other.biased
        border = self.border if self.is_padded else other.border
        return Geometry(self.channels_in, channels_out, axes, groups, biased, border)

    def then_failure(self, after: "Geometry", sizes: Sizes) -> str | None:
        """Why `then` is not exact for inputs of these spatial sizes, or None.

        A per-channel map after anything is exact. Values that a border repeats are those of `self`
        if it reads each position alone, as a 1×1 convolution does.
        """
        if after.is_pointwise:
            return None
        if self.transposed or after.transposed:
            if self.is_pointwise and not self.biased:
                return None
            return "only a per-channel map composes with a transposed convolution"
        if after.is_padded and after.border != "zeros":
            return None if self.is_local else f"its border is {after.border}, of values in between"
        if after.is_padded and self.is_padded and self.border != "zeros":
            return f"its padding is zeros, that of the operator before {self.border}"
        axes = zip(self.axes, after.axes, sizes, strict=True)
        failures = (a.then_failure(b, self.biased, size) for a, b, size in axes)
        return next(filter(None, failures), None)

    def plus_failure(self, other: "Geometry", sizes: Sizes) -> str | None:
        """Why two results of inputs of these spatial sizes cannot be added as one form, or None."""
        if self.transposed or other.transposed:
            return "one of the branches is a transposed convolution"
        if self.is_padded and other.is_padded and self.border != other.border:
            return f"the branches have {self.border} and {other.border} at the border"
        axes = zip(self.axes, other.axes, sizes, strict=True)
        return next(filter(None, (a.plus_failure(b, size) for a, b, size in axes)), None)

    def macs(self, sizes: Sequence[int]) -> int:
        """Multiply-accumulates for one input of these spatial sizes."""
        taps = math.prod(axis.taps for axis in self.axes)
        positions = sizes if self.transposed else self.output_sizes(sizes)
        return self.channels_out * math.prod(positions) * self.channels_in // self.groups * taps
