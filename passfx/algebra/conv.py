"""The affine convolution form, and the algebra that every collapse is made of.

    y[n, o, p] = bias[o] + Σ_{c, t} weight[o, c, t] · x0[n, c, stride·p − low + dilation·t]

with x0 = x extended by zeros, in any number of spatial dimensions, with groups; with no spatial
dimension it is a linear layer. Identity, norms, scales, average pools, zero pads, crops and strided
slices are all of this form. Two forms are aligned by the offsets of their taps (`Axis`), never by
the middle of their kernels. All arithmetic is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.geometry import Axis, Geometry


@dataclass(frozen=True)
class Conv:
    """An affine convolution: `weight` [out, in / groups, *kernel] and `bias` [out], float64.

    `then`, `plus` and `cat` are exact where `geometry.then_failure` and `plus_failure` give no
    reason. `border` and `transposed` are as in `Geometry`; a transposed convolution has its weight
    in the order of a plain one.
    """

    weight: Tensor
    bias: Tensor
    axes: tuple[Axis, ...]
    groups: int = 1
    border: str = "zeros"
    transposed: bool = False

    @property
    def geometry(self) -> Geometry:
        """The shape of the form."""
        out, inside, *_ = self.weight.shape
        given, biased = inside * self.groups, bool(self.bias.any())
        return Geometry(given, out, self.axes, self.groups, biased, self.border, self.transposed)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the form to [batch, in, *sizes], in float64."""
        x = x.double()
        if not self.axes:
            return functional.linear(x, self.densify().weight, self.bias)
        weight, low, extra = self.weight, [0] * len(self.axes), [0] * len(self.axes)
        if self.transposed:
            weight, low = self.transposed_weight(), [axis.low for axis in self.axes]
            extra = [axis.low - axis.high for axis in self.axes]
        else:
            mode = "constant" if self.border == "zeros" else self.border
            sides = [side for axis in self.axes[::-1] for side in (axis.low, axis.high)]
            x = functional.pad(x, [max(0, side) for side in sides], mode)
            x = functional.pad(x, [min(0, side) for side in sides])
        stride, dilation = zip(*((axis.stride, axis.dilation) for axis in self.axes), strict=True)
        options = stride, low, dilation, self.transposed, extra, self.groups
        return torch.convolution(x, weight, self.bias, *options)

    def transposed_weight(self) -> Tensor:
        """The weight as a transposed convolution has it: [in, out / groups, *kernel].

        The same permutation leads back from there.
        """
        return swap_channels(self.weight, self.groups)

    def then(self, after: "Conv") -> "Conv":
        """`after` applied to the result of `self`.

        W[o, c] = Σ_m W2[o, m] · W1[m, c] for every pair of taps, bias = b2 + Σ_{m, t} W2 · b1.
        """
        if after.geometry.is_pointwise:
            return self.scaled(ChannelAffine(after.weight.reshape(-1), after.bias))
        shape = self.geometry.then(after.geometry)
        groups = shape.groups
        w1 = _by_group(self.densify(groups).weight, groups)
        w2 = _by_group(after.densify(groups).weight, groups)
        weight = w1.new_zeros(groups, w2.shape[1], w1.shape[2], *shape.kernel)
        columns = w2.reshape(*w2.shape[:3], -1)
        for number, taps in enumerate(product(*map(range, after.geometry.kernel))):
            axes = zip(shape.axes, self.axes, after.axes, taps, strict=True)
            window = tuple(
                axis.position(first, offset=first.stride * (second.first + second.dilation * tap))
                for axis, first, second, tap in axes
            )
            mixed = torch.einsum("gom,gmc...->goc...", columns[..., number], w1)
            _window(weight, window).add_(mixed)
        carried = torch.einsum("gom,gm->go", columns.sum(-1), self.bias.reshape(groups, -1))
        bias = after.bias + carried.reshape(-1)
        return Conv(weight.flatten(0, 1), bias, shape.axes, groups, shape.border, shape.transposed)

    def plus(self, other: "Conv") -> "Conv":
        """The sum of two forms of one input."""
        shape = self.geometry.plus(other.geometry)
        forms = self.densify(shape.groups), other.densify(shape.groups)
        weight = self.weight.new_zeros(*forms[0].weight.shape[:2], *shape.kernel)
        for form in forms:
            window = tuple(a.position(b) for a, b in zip(shape.axes, form.axes, strict=True))
            _window(weight, window).add_(form.weight)
        return Conv(weight, self.bias + other.bias, shape.axes, shape.groups, shape.border)

    def scaled(self, after: ChannelAffine) -> "Conv":
        """The form followed by a per-channel affine map of its outputs; always exact."""
        scale = after.scale.reshape(-1, *(1,) * (self.weight.ndim - 1))
        bias = self.bias * after.scale + after.shift
        return replace(self, weight=self.weight * scale, bias=bias)

    def split(self, sizes: Sequence[int]) -> list["Conv"]:
        """The forms of consecutive ranges of output channels."""
        dense = self.densify()
        parts = (torch.split(item, list(sizes)) for item in (dense.weight, dense.bias))
        return [replace(dense, weight=w, bias=b) for w, b in zip(*parts, strict=True)]

    def densify(self, groups: int = 1) -> "Conv":
        """The same form with fewer groups, which must divide the present ones."""
        if groups == self.groups:
            return self
        blocks = self.groups // groups
        w = self.weight.reshape(groups, blocks, -1, *self.weight.shape[1:])
        dense = w.new_zeros(groups, blocks, w.shape[2], blocks, *w.shape[3:])
        index = torch.arange(blocks)
        dense[:, index, :, index] = w.transpose(0, 1)
        return replace(self, weight=dense.flatten(0, 2).flatten(1, 2), groups=groups)

    def split_into(self, groups: int) -> "Conv":
        """The same form with more groups, between which its weights must be zero."""
        return replace(self, weight=self._diagonal(self.weight, groups), groups=groups)

    def regroup(self) -> "Conv":
        """The same form with as many groups as its zeros allow; one of zeros alone has its own."""
        if not self.weight.any():
            return self
        shape = self.geometry
        used = self.weight.flatten(2).any(-1) if self.axes else self.weight != 0
        common = math.gcd(shape.channels_in, shape.channels_out)
        for groups in range(common, self.groups, -1):
            divides = not (common % groups or groups % self.groups)
            if divides and int(self._diagonal(used, groups).sum()) == int(used.sum()):
                return self.split_into(groups)
        return self

    def _diagonal(self, weight: Tensor, groups: int) -> Tensor:
        """The blocks of a weight that remain if it is split into more groups."""
        blocks = groups // self.groups
        shape = self.geometry
        out, inside = shape.channels_out // groups, shape.channels_in // groups
        w = weight.reshape(self.groups, blocks, out, blocks, inside, *weight.shape[2:])
        index = torch.arange(blocks)
        return w[:, index, :, index].transpose(0, 1).flatten(0, 2)

    def crop(self) -> "Conv":
        """Drop outer taps that are zero everywhere, and write regular gaps as dilation.

        A kernel of zeros alone stays: it is no operator of one tap, but one that is not trained.
        """
        form = self
        taps = self.weight.flatten(0, 1).any(0)
        if self.transposed or not taps.any():
            return form
        for number, axis in enumerate(self.axes):
            lines = taps.movedim(number, 0).reshape(axis.taps, -1)
            used = lines.any(1).nonzero().flatten().tolist()
            if len(used) == axis.taps:
                continue
            first, last = used[0], used[-1]
            jump = math.gcd(*(tap - first for tap in used)) or 1
            kept = torch.arange(first, last + 1, jump)
            low = axis.low - axis.dilation * first
            high = axis.high - axis.dilation * (axis.taps - 1 - last)
            gap = axis.dilation * jump if len(kept) > 1 else 1
            cropped = Axis(len(kept), axis.stride, low, high, gap)
            form = form._with_axis(number, cropped, form.weight.index_select(number + 2, kept))
        return form

    def uncut(self) -> "Conv":
        """What is left to do once the crops are done."""
        return replace(self, axes=self.geometry.uncut.axes)

    def normalized(self) -> "Conv":
        """The same form cropped, and with zero taps in place of negative padding."""
        form = self.crop()
        if self.transposed:
            return form
        for number, axis in enumerate(form.axes):
            wide = axis.uncropped
            if wide != axis:
                shape = list(form.weight.shape)
                shape[number + 2] = wide.taps
                weight = form.weight.new_zeros(shape)
                taps = weight.movedim(number + 2, 0)
                taps[wide.position(axis)] = form.weight.movedim(number + 2, 0)
                form = form._with_axis(number, wide, weight)
        return form

    def _with_axis(self, number: int, axis: Axis, weight: Tensor) -> "Conv":
        axes = (*self.axes[:number], axis, *self.axes[number + 1 :])
        return replace(self, weight=weight, axes=axes)


def _window(weight: Tensor, window: tuple[slice, ...]) -> Tensor:
    """The taps of a weight in a window, as a view."""
    return weight[(slice(None),) * (weight.ndim - len(window)) + window]


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """[a, b / groups, *kernel] → [b, a / groups, *kernel], group by group."""
    return _by_group(weight, groups).transpose(1, 2).flatten(0, 1)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, -1, *weight.shape[1:])


def cat(forms: Sequence[Conv]) -> Conv:
    """The forms of one input with their outputs stacked, aligned as in `plus`."""
    total, at, result = sum(form.bias.numel() for form in forms), 0, None
    for form in map(Conv.densify, forms):
        rows = slice(at, at + form.bias.numel())
        weight = form.weight.new_zeros(total, *form.weight.shape[1:])
        bias = form.bias.new_zeros(total)
        weight[rows], bias[rows] = form.weight, form.bias
        placed = replace(form, weight=weight, bias=bias)
        result, at = placed if result is None else result.plus(placed), rows.stop
    assert result is not None
    return result


def pointwise(affine: ChannelAffine, rank: int) -> Conv:
    """A per-channel affine map (a norm, a scale, a bias) over `rank` spatial dimensions."""
    weight = affine.scale.reshape(-1, *(1,) * (rank + 1))
    return Conv(weight, affine.shift, (Axis(),) * rank, weight.shape[0])


def identity(channels: int, axes: Sequence[Axis]) -> Conv:
    """y = x, with the padding, cropping and stride of `axes`, which have one tap each."""
    return average_pool(channels, axes, 1)


def average_pool(channels: int, axes: Sequence[Axis], divisor: int) -> Conv:
    """An average pool that divides every window by the same number."""
    kernel = [axis.taps for axis in axes]
    weight = torch.full((channels, 1, *kernel), 1 / divisor, dtype=torch.float64)
    return Conv(weight, weight.new_zeros(channels), tuple(axes), channels)
