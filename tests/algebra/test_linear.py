"""A linear layer with a channel map folded in is the layer, then the map."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from passfx.algebra import linear
from passfx.algebra.channel import ChannelAffine
from passfx.verify import relative_error


@settings(max_examples=200, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_map_folds_into_a_linear_layer(
    leading: list[int], inputs: int, outputs: int, biased: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, inputs, dtype=torch.float64, generator=generator)
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator)
    bias, scale, shift = torch.randn(3, outputs, dtype=torch.float64, generator=generator)
    given_bias = bias if biased else None
    folded = linear.then_channel(weight, given_bias, ChannelAffine(scale, shift))
    wanted = scale * functional.linear(x, weight, given_bias) + shift
    assert relative_error(functional.linear(x, *folded), wanted) <= 1e-12


def test_batch_norm_folds_into_a_linear_layer() -> None:
    x, weight = torch.randn(7, 5).double(), torch.randn(3, 5).double()
    mean, spread, scale, shift = torch.randn(4, 3).double()
    norm = ChannelAffine.batch_norm(scale, shift, mean, spread.exp(), 1e-3)
    wanted = functional.batch_norm(
        functional.linear(x, weight), mean, spread.exp(), scale, shift, training=False, eps=1e-3
    )
    folded = linear.then_channel(weight, None, norm)
    assert relative_error(functional.linear(x, *folded), wanted) <= 1e-12


def test_half_weights_are_folded_in_float64() -> None:
    weight, bias = torch.randn(3, 5).half(), torch.randn(3).half()
    affine = ChannelAffine(*torch.randn(2, 3).double())
    narrow = linear.then_channel(weight, bias, affine)
    wide = linear.then_channel(weight.double(), bias.double(), affine)
    assert torch.equal(narrow[0], wide[0]) and torch.equal(narrow[1], wide[1])
    assert narrow[0].dtype == torch.float64
