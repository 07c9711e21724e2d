"""The affine form: every operation against the operators that it replaces, in float64."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv, average_pool, cat, identity, pointwise
from passfx.algebra.geometry import Axis, Geometry
from tests.algebra.strategies import Values, branches, cases, chains, transposed, values

RANKS = (0, 1, 2, 3)
# Examples of each rank: a thousand a law, and 300 of transposed convolutions.
DRAWS = {0: 100, 1: 300, 2: 400, 3: 200}
TRANSPOSED_DRAWS = 100


def close(result: Tensor, wanted: Tensor) -> bool:
    if result.shape != wanted.shape:
        return False
    return bool(((result - wanted).abs() <= 1e-10 * wanted.abs().max().clamp(min=1)).all())


@pytest.mark.parametrize("rank", RANKS)
def test_every_way_to_write_a_form_computes_the_same(rank: int) -> None:
    @settings(max_examples=DRAWS[rank])
    @given(cases(rank), values)
    def law(case: tuple[Conv, Tensor], drawn: Values) -> None:
        form, x = case
        wanted, dense = form(x), form.densify()
        assert dense.regroup().groups >= (form.groups if form.weight.any() else 1)
        normalized = form.normalized()
        assert all(min(axis.low, axis.high) >= 0 for axis in normalized.axes)
        for same in (form.crop(), normalized, dense, dense.regroup().normalized()):
            assert close(same(x), wanted), (form, same)
        affine = ChannelAffine(drawn.randn(wanted.shape[1]), drawn.randn(wanted.shape[1]))
        channel = (-1, *(1,) * len(form.axes))
        mapped = wanted * affine.scale.reshape(channel) + affine.shift.reshape(channel)
        assert close(form.scaled(affine)(x), mapped)
        assert close(form.then(pointwise(affine, len(form.axes)))(x), mapped)

    law()


@pytest.mark.parametrize("rank", RANKS)
def test_a_composition_is_exact_unless_refused(rank: int) -> None:
    counts = Counter[str]()

    @settings(max_examples=DRAWS[rank])
    @given(chains(rank))
    def law(case: tuple[Conv, Conv, Tensor]) -> None:
        first, after, x = case
        sizes = x.shape[2:]
        wanted, both = after(first(x)), first.then(after)
        shape = first.geometry.then(after.geometry)
        assert (both.axes, both.groups, both.border) == (shape.axes, shape.groups, shape.border)
        assert both.weight.shape[2:] == shape.kernel
        failure = first.geometry.then_failure(after.geometry, sizes)
        unsized = first.geometry.then_failure(after.geometry, [None] * len(sizes))
        if failure is None:
            assert close(both(x), wanted), (first, after, sizes)
        assert unsized is not None or failure is None, (first, after, sizes)
        counts.update([f"{failure is None}", f"{unsized is None}, unsized"])

    law()
    if rank == 0:  # linear layers always compose
        assert counts == {"True": DRAWS[rank], "True, unsized": DRAWS[rank]}
    else:
        assert min(counts.values()) > DRAWS[rank] // 15 and len(counts) == 4, counts


@pytest.mark.parametrize("rank", RANKS)
def test_sums_and_stacks_are_exact_unless_refused(rank: int) -> None:
    counts = Counter[bool]()

    @settings(max_examples=DRAWS[rank])
    @given(branches(rank))
    def law(case: tuple[Conv, Conv, Tensor]) -> None:
        a, b, x = case
        sizes = x.shape[2:]
        first, second = a(x), b(x)
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

    law()
    if rank == 0:  # linear layers can always be added
        assert counts == {True: DRAWS[rank]}
    else:
        assert counts[True] > DRAWS[rank] // 3 and counts[False] > DRAWS[rank] // 15, counts


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_take_channel_maps(rank: int) -> None:
    @settings(max_examples=TRANSPOSED_DRAWS)
    @given(transposed(rank), values)
    def law(case: tuple[Conv, Tensor], drawn: Values) -> None:
        form, x = case
        shape, channels = form.geometry, x.shape[1]
        wanted = form(x)
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        layer = kind(channels, shape.channels_out, shape.kernel, groups=form.groups)
        assert form.transposed_weight().shape == layer.weight.shape
        before, after = (
            pointwise(ChannelAffine(drawn.randn(count), drawn.randn(count) * biased), rank)
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

    law()


def test_a_bias_before_a_transposed_convolution_is_refused() -> None:
    scale = pointwise(ChannelAffine(torch.ones(2), torch.ones(2)), 1)
    weight = torch.ones(2, 2, 1, dtype=torch.float64)
    form = Conv(weight, torch.zeros(2), (Axis(),), transposed=True).geometry
    reason = "only a per-channel map composes with a transposed convolution"
    assert scale.geometry.then_failure(form, (4,)) == reason
    assert replace(scale.geometry, biased=False).then_failure(form, (4,)) is None


def test_the_leaves() -> None:
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    moved = identity(3, (Axis(1, 2, -1, 2), Axis(1, 1, 3, -2)))
    assert close(moved(x), torch.nn.functional.pad(x, (3, -2, -1, 2))[:, :, ::2])
    pool = average_pool(3, (Axis(3, 2, 1, 1), Axis(2, 1)), 6)
    assert close(pool(x), torch.nn.functional.avg_pool2d(x, (3, 2), (2, 1), (1, 0)))
    affine = ChannelAffine(torch.randn(3).double(), torch.randn(3).double())
    assert pointwise(affine, 2).geometry.is_pointwise
    assert not pool.geometry.is_pointwise


def test_crop_finds_dilation() -> None:
    weight = torch.tensor([[[0.0, 1, 0, 0, 2, 0, 0, 3]]], dtype=torch.float64)
    form = Conv(weight, torch.ones(1, dtype=torch.float64), (Axis(8, 2, 3, 2),)).crop()
    assert form.axes == (Axis(3, 2, 2, 2, 3),)
    assert form.weight.flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("rank", RANKS)
def test_an_all_zero_kernel_stays_as_it_is(rank: int) -> None:
    weight = torch.zeros(4, 4, *(3,) * rank, dtype=torch.float64)
    form = Conv(weight, torch.ones(4, dtype=torch.float64), (Axis(3, 2, 1, 1),) * rank)
    assert form.crop() is form
    assert form.regroup() is form
    assert form.normalized() is form
    x = torch.randn(2, 4, *(9,) * rank, dtype=torch.float64)
    assert close(form(x), torch.ones_like(form(x)))
