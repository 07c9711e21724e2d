"""Per-channel affine maps against torch's own batch norm and arithmetic, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from passfx.algebra.channel import ChannelAffine
from passfx.verify.error import relative_error


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def apply_map(affine: ChannelAffine, x: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    return affine.scale.reshape(shape) * x + affine.shift.reshape(shape)


@settings(max_examples=300, deadline=None)
@given(
    channels=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    weighted=st.booleans(),
    biased=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 1e-3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_batch_norm_is_torchs(
    channels: int, spatial: list[int], weighted: bool, biased: bool, eps: float, seed: int
) -> None:
    weight, bias, mean, spread = randn(4, channels, seed=seed)
    parameters = (weight if weighted else None, bias if biased else None)
    variance = spread.exp()
    x = randn(2, channels, *spatial, seed=seed + 1)
    affine = ChannelAffine.batch_norm(*parameters, mean, variance, eps)
    wanted = functional.batch_norm(x, mean, variance, *parameters, training=False, eps=eps)
    assert relative_error(apply_map(affine, x), wanted) <= 1e-12


def test_batch_norm_of_half_statistics_is_computed_in_float64() -> None:
    weight, bias, mean, spread = randn(4, 6).half()
    variance = spread.exp()
    wide = ChannelAffine.batch_norm(
        weight.double(), bias.double(), mean.double(), variance.double(), 1e-5
    )
    narrow = ChannelAffine.batch_norm(weight, bias, mean, variance, 1e-5)
    assert torch.equal(narrow.scale, wide.scale) and torch.equal(narrow.shift, wide.shift)
    assert narrow.scale.dtype == narrow.shift.dtype == torch.float64


def test_scaling_and_shifting_take_one_number_or_one_per_channel() -> None:
    x, each = randn(2, 4, 3), randn(4, seed=1)
    for given_value, value in ((each.reshape(1, 4, 1), each[:, None]), (each[:1], each[0])):
        assert torch.equal(apply_map(ChannelAffine.scaling(given_value, 4), x), x * value)
        assert torch.equal(apply_map(ChannelAffine.shifting(given_value, 4), x), x + value)


def test_then_applies_the_first_map_first() -> None:
    first, after = (ChannelAffine(*randn(2, 4, seed=seed)) for seed in (1, 2))
    x = randn(2, 4, 3, 5)
    wanted = apply_map(after, apply_map(first, x))
    assert relative_error(apply_map(first.then(after), x), wanted) <= 1e-14
    assert relative_error(apply_map(after.then(first), x), wanted) > 1e-3
