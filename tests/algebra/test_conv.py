"""A convolution with a channel map folded in is the convolution, then the map."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from passfx.algebra import conv
from passfx.algebra.channel import ChannelAffine
from passfx.verify import relative_error

CONVS = {
    False: (functional.conv1d, functional.conv2d, functional.conv3d),
    True: (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
}


@dataclass(frozen=True)
class Layer:
    """A convolution with random weights, and an input for it."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    transposed: bool
    options: dict[str, Any]

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = CONVS[self.transposed][weight.ndim - 3]
        return function(self.x, weight, bias, **self.options)

    @property
    def channels(self) -> int:
        """How many channels come out."""
        axis = 1 if self.transposed else 0
        return self.weight.shape[axis] * (self.options["groups"] if self.transposed else 1)


@st.composite
def layers(draw: st.DrawFn, transposed: bool) -> Layer:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    dims = draw(st.integers(1, 3))
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, dilation, padding = each(1, 3), each(1, 3), each(1, 2), each(0, 2)
    options: dict[str, Any] = {
        "groups": groups,
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
    }
    extra = each(0, 3)
    sizes = [d * (k - 1) + 1 + e for d, k, e in zip(dilation, kernel, extra, strict=True)]
    if transposed:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        assume(
            all(
                (size - 1) * s - 2 * p + d * (k - 1) + o + 1 > 0
                for size, s, p, d, k, o in zip(
                    sizes, stride, padding, dilation, kernel, options["output_padding"], strict=True
                )
            )
        )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    shape = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
    return Layer(
        randn(2, groups * inputs, *sizes),
        randn(*shape, *kernel),
        randn(groups * outputs) if draw(st.booleans()) else None,
        transposed,
        options,
    )


def random_norm(channels: int, affine: bool, seed: int) -> tuple[Any, ...]:
    """Mean, variance, weight and bias, as `functional.batch_norm` takes them."""
    generator = torch.Generator().manual_seed(seed)
    mean, spread, weight, bias = torch.randn(4, channels, dtype=torch.float64, generator=generator)
    return mean, spread.exp(), *((weight, bias) if affine else (None, None))


def check_norm_fold(layer: Layer, affine: bool, seed: int) -> None:
    mean, variance, weight, bias = random_norm(layer.channels, affine, seed)
    norm = ChannelAffine.batch_norm(weight, bias, mean, variance, 1e-5)
    folded = conv.then_channel(
        layer.weight,
        layer.bias,
        norm,
        groups=layer.options["groups"],
        transposed=layer.transposed,
    )
    assert folded[0].shape == layer.weight.shape and folded[1].shape == (layer.channels,)
    wanted = functional.batch_norm(
        layer(layer.weight, layer.bias), mean, variance, weight, bias, training=False
    )
    assert relative_error(layer(*folded), wanted) <= 1e-12


@settings(max_examples=300, deadline=None)
@given(layers(transposed=False), st.booleans(), st.integers(0, 2**31))
def test_norm_folds_into_a_convolution(layer: Layer, affine: bool, seed: int) -> None:
    check_norm_fold(layer, affine, seed)


@settings(max_examples=300, deadline=None)
@given(layers(transposed=True), st.booleans(), st.integers(0, 2**31))
def test_norm_folds_into_a_transposed_convolution(layer: Layer, affine: bool, seed: int) -> None:
    check_norm_fold(layer, affine, seed)


def test_float32_weights_are_folded_in_float64() -> None:
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    affine = ChannelAffine(torch.randn(4).double(), torch.randn(4).double())
    options = {"groups": 1, "transposed": False}
    narrow = conv.then_channel(weight, bias, affine, **options)
    wide = conv.then_channel(weight.double(), bias.double(), affine, **options)
    assert torch.equal(narrow[0], wide[0]) and torch.equal(narrow[1], wide[1])
    assert narrow[0].dtype == narrow[1].dtype == torch.float64


def test_the_given_weights_stay_as_they_were() -> None:
    weight, bias = torch.randn(4, 3, 3).double(), torch.randn(4).double()
    before = weight.clone(), bias.clone()
    conv.then_channel(
        weight, bias, ChannelAffine(*torch.randn(2, 4).double()), groups=1, transposed=False
    )
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])
