"""The affine form: every operation against the operators that it replaces, in float64."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv, average_pool, cat, identity, pointwise
from passfx.algebra.geometry import Axis, Geometry

SEEDS = range(20)
DRAWS = 150


def close(result: Tensor, wanted: Tensor) -> bool:
    if result.shape != wanted.shape:
        return False
    return bool(((result - wanted).abs() <= 1e-10 * wanted.abs().max().clamp(min=1)).all())


def fits(form: Conv, sizes: Sequence[int]) -> bool:
    """Whether there are values enough for the border."""
    return form.border == "zeros" or all(
        max(axis.low, axis.high) < size for axis, size in zip(form.axes, sizes, strict=True)
    )


class Draw:
    """Random forms from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def axis(self, stride: int | None = None) -> Axis:
        pick = self.random.choice
        taps = pick([1, 1, 2, 3, 4])
        low, high = pick([0, 0, 1, 2, -1]), pick([0, 0, 1, 2, -1])
        dilation = pick([1, 1, 2, 3]) if taps > 1 else 1
        return Axis(taps, stride or pick([1, 1, 2, 3]), low, high, dilation)

    def conv(
        self,
        channels_in: int,
        rank: int,
        channels_out: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> Conv:
        groups = self.random.choice([item for item in (1, 2, 4) if channels_in % item == 0])
        out = channels_out or groups * self.random.choice([1, 2, 3])
        groups = groups if out % groups == 0 else 1
        axes = tuple(self.axis(strides and strides[number]) for number in range(rank))
        weight = self.randn(out, channels_in // groups, *(axis.taps for axis in axes))
        if self.random.random() < 0.3:
            weight = weight * (self.randn(*weight.shape[2:]) > 0)
        border = self.random.choice(["zeros"] * 5 + ["reflect", "replicate", "circular"])
        if rank == 0 or min(min(axis.low, axis.high) for axis in axes) < 0:
            border = "zeros"
        bias = self.randn(out) * self.random.choice([0, 1])
        return Conv(weight, bias, axes, groups, border)

    def transposed(self, channels_in: int, rank: int) -> Conv:
        """A transposed convolution; its output padding is below its stride."""
        form = self.conv(channels_in, rank)
        axes = []
        for axis in form.axes:
            low = self.random.randint(0, (axis.taps - 1) * axis.dilation)
            axes.append(replace(axis, low=low, high=low - self.random.randrange(axis.stride)))
        return replace(form, axes=tuple(axes), border="zeros", transposed=True)

    def with_result(self, sizes: Sequence[int], *options: object) -> Conv:
        """A form whose result for these sizes is not empty."""
        while True:
            form = self.conv(*options)  # type: ignore[arg-type]
            if min(form.geometry.output_sizes(sizes), default=1) > 0 and fits(form, sizes):
                return form

    def case(self) -> tuple[Conv, Tensor]:
        """A form and an input of it, in none to three dimensions."""
        rank, channels = self.random.choice([0, 1, 2, 2, 3]), self.random.choice([1, 2, 4])
        sizes = [self.random.randint(5, 9) for _ in range(rank)]
        return self.with_result(sizes, channels, rank), self.randn(2, channels, *sizes)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_way_to_write_a_form_computes_the_same(seed: int) -> None:
    draw = Draw(seed)
    for _ in range(DRAWS):
        form, x = draw.case()
        wanted, dense = form(x), form.densify()
        assert dense.regroup().groups >= form.groups
        normalized = form.normalized()
        assert all(min(axis.low, axis.high) >= 0 for axis in normalized.axes)
        for same in (form.crop(), normalized, dense, dense.regroup().normalized()):
            assert close(same(x), wanted), (form, same)
        affine = ChannelAffine(draw.randn(wanted.shape[1]), draw.randn(wanted.shape[1]))
        channel = (-1, *(1,) * len(form.axes))
        mapped = wanted * affine.scale.reshape(channel) + affine.shift.reshape(channel)
        assert close(form.scaled(affine)(x), mapped)
        assert close(form.then(pointwise(affine, len(form.axes)))(x), mapped)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_composition_is_exact_unless_refused(seed: int) -> None:
    draw, counts = Draw(seed), Counter[str]()
    for _ in range(DRAWS):
        first, x = draw.case()
        between = first(x)
        sizes = x.shape[2:]
        after = draw.with_result(between.shape[2:], between.shape[1], len(sizes))
        wanted, both = after(between), first.then(after)
        shape = first.geometry.then(after.geometry)
        assert (both.axes, both.groups, both.border) == (shape.axes, shape.groups, shape.border)
        assert both.weight.shape[2:] == shape.kernel
        failure = first.geometry.then_failure(after.geometry, sizes)
        unsized = first.geometry.then_failure(after.geometry, [None] * len(sizes))
        if failure is None:
            assert close(both(x), wanted), (first, after, sizes)
        assert unsized is not None or failure is None, (first, after, sizes)
        counts.update([f"{failure is None}", f"{unsized is None}, unsized"])
    assert min(counts.values()) > 10 and len(counts) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_and_stacks_are_exact_unless_refused(seed: int) -> None:
    draw, counts = Draw(seed), Counter[bool]()
    for _ in range(DRAWS):
        a, x = draw.case()
        first, sizes = a(x), x.shape[2:]
        strides = [axis.stride for axis in a.axes] if draw.random.random() < 0.8 else None
        b = draw.with_result(sizes, x.shape[1], len(sizes), first.shape[1], strides)
        if draw.random.random() < 0.8:  # the padding that gives it the size of the first
            pairs = zip(a.axes, b.axes, strict=True)
            axes = [replace(axis, high=axis.high + c.excess - axis.excess) for c, axis in pairs]
            b = replace(b, axes=tuple(axes))
        if min(b.geometry.output_sizes(sizes), default=1) < 1 or not fits(b, sizes):
            continue
        second = b(x)
        unsized = a.geometry.plus_failure(b.geometry, [None] * len(sizes))
        failure = a.geometry.plus_failure(b.geometry, sizes)
        assert unsized is not None or failure is None
        counts.update([failure is None])
        if failure is None:
            shape, both = a.geometry.plus(b.geometry), a.plus(b)
            assert (both.axes, both.groups) == (shape.axes, shape.groups)
            assert close(both(x), first + second), (a, b, sizes)
            stacked = cat([a, b])
            assert stacked.axes == a.geometry.beside(b.geometry).axes
            assert close(stacked(x), torch.cat([first, second], 1))
            parts = stacked.split([first.shape[1]] * 2)
            for part, wanted in zip(parts, (first, second), strict=True):
                assert close(part(x), wanted)
    assert counts[True] > 50 and counts[False] > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_transposed_convolutions_take_channel_maps(seed: int) -> None:
    draw = Draw(seed)
    for _ in range(DRAWS // 5):
        rank, channels = draw.random.choice([1, 2, 3]), draw.random.choice([1, 2, 4])
        form = draw.transposed(channels, rank)
        x = draw.randn(2, channels, *(draw.random.randint(3, 5) for _ in range(rank)))
        shape = form.geometry
        if min(_transposed_size(a, n) for a, n in zip(form.axes, x.shape[2:], strict=True)) < 1:
            continue
        wanted = form(x)
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        layer = kind(channels, shape.channels_out, shape.kernel, groups=form.groups)
        assert form.transposed_weight().shape == layer.weight.shape
        before, after = (
            pointwise(ChannelAffine(draw.randn(count), draw.randn(count) * biased), rank)
            for count, biased in ((channels, 0), (shape.channels_out, 1))
        )
        assert close(form.then(after)(x), after(wanted))
        assert form.then(after).geometry == shape.then(after.geometry)
        assert before.geometry.then_failure(shape, x.shape[2:]) is None
        assert close(before.then(form)(x), form(before(x)))
        assert close(form.densify()(x), wanted)
        refused = "only a per-channel map composes with a transposed convolution"
        dense = Geometry(shape.channels_out, 2, (Axis(),) * rank)
        assert shape.then_failure(dense, x.shape[2:]) == refused
        assert dense.then_failure(shape, x.shape[2:]) == refused
        assert shape.plus_failure(shape, x.shape[2:]) is not None


def _transposed_size(axis: Axis, size: int) -> int:
    return (size - 1) * axis.stride - axis.low - axis.high + axis.dilation * (axis.taps - 1) + 1


def test_a_bias_before_a_transposed_convolution_is_refused() -> None:
    scale = pointwise(ChannelAffine(torch.ones(2), torch.ones(2)), 1)
    weight = torch.ones(2, 2, 1, dtype=torch.float64)
    form = Conv(weight, torch.zeros(2), (Axis(),), transposed=True).geometry
    reason = "only a per-channel map composes with a transposed convolution"
    assert scale.geometry.then_failure(form, (4,)) == reason
    assert replace(scale.geometry, biased=False).then_failure(form, (4,)) is None


def test_the_leaves() -> None:
    draw = Draw(0)
    x = draw.randn(2, 3, 6, 7)
    moved = identity(3, (Axis(1, 2, -1, 2), Axis(1, 1, 3, -2)))
    assert close(moved(x), torch.nn.functional.pad(x, (3, -2, -1, 2))[:, :, ::2])
    pool = average_pool(3, (Axis(3, 2, 1, 1), Axis(2, 1)), 6)
    assert close(pool(x), torch.nn.functional.avg_pool2d(x, (3, 2), (2, 1), (1, 0)))
    affine = ChannelAffine(draw.randn(3), draw.randn(3))
    assert pointwise(affine, 2).geometry.is_pointwise
    assert not pool.geometry.is_pointwise


def test_crop_finds_dilation_and_an_all_zero_kernel() -> None:
    weight = torch.tensor([[[0.0, 1, 0, 0, 2, 0, 0, 3]]], dtype=torch.float64)
    form = Conv(weight, torch.ones(1, dtype=torch.float64), (Axis(8, 2, 3, 2),)).crop()
    assert form.axes == (Axis(3, 2, 2, 2, 3),)
    assert form.weight.flatten().tolist() == [1, 2, 3]
    nothing = replace(form, weight=torch.zeros_like(form.weight)).crop()
    x = Draw(1).randn(1, 1, 9)
    assert nothing.axes[0].taps == 1
    assert close(nothing(x), torch.ones_like(form(x)))
