"""models/pass_layer.py computes what it says."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import pass_layer
from tests.example_models.formulas import convolve, normalise, randn, randomise, relu


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 4), (4, 6), (6, 4)])
def test_residual_block_equals_its_formula(in_channels: int, out_channels: int) -> None:
    block = pass_layer.ResidualBlock(in_channels, out_channels).double().eval()
    randomise(block)
    x = randn(2, in_channels, 5, 7)

    body = relu(normalise(convolve(x, block.conv1), block.bn1))
    body = normalise(convolve(body, block.conv2), block.bn2)
    if in_channels == out_channels:
        skip = x
    else:
        conv, norm = block.pass_layer
        skip = normalise(convolve(x, conv), norm)

    torch.testing.assert_close(block(x.clone()), relu(body + skip))


def test_residual_block_has_a_pass_layer_only_where_the_channels_differ() -> None:
    assert len(pass_layer.ResidualBlock(4, 4).pass_layer) == 0
    conv, norm = pass_layer.ResidualBlock(4, 6).pass_layer
    assert isinstance(conv, nn.Conv2d)
    assert conv.kernel_size == (1, 1)
    assert isinstance(norm, nn.BatchNorm2d)


def test_residual_block_convolutions_have_a_bias() -> None:
    block = pass_layer.ResidualBlock(4, 4)
    assert block.conv1.bias is not None
    assert block.conv2.bias is not None


def test_residual_block_leaves_its_input_alone() -> None:
    x = randn(1, 4, 5, 5)
    before = x.clone()
    pass_layer.ResidualBlock(4, 4).double().eval()(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def with_other_conv1(model: pass_layer.PassCNN) -> pass_layer.PassCNN:
    other = copy.deepcopy(model)
    nn.init.constant_(other.conv1.weight, 0.25)
    return other


def test_pass_cnn_ignores_its_first_branch() -> None:
    model = pass_layer.PassCNN().double().eval()
    randomise(model)
    x = randn(2, 3, 5, 7)
    assert torch.equal(model(x), with_other_conv1(model)(x))
    conv, norm = model.pass_layer
    torch.testing.assert_close(model(x), normalise(convolve(x, conv), norm))


def test_pass_cnn_still_runs_its_first_branch() -> None:
    model = pass_layer.PassCNN().double().train()
    assert model.bn1.running_mean is not None
    before = model.bn1.running_mean.clone()
    model(randn(2, 3, 5, 7))
    assert not torch.equal(model.bn1.running_mean, before)


def test_pass_cnn_add_is_the_sum_of_both_branches() -> None:
    model = pass_layer.PassCNNAdd().double().eval()
    randomise(model)
    x = randn(2, 3, 5, 7)
    assert not torch.allclose(model(x), with_other_conv1(model)(x))
    conv, norm = model.pass_layer
    first = relu(normalise(convolve(x, model.conv1), model.bn1))
    torch.testing.assert_close(model(x), first + normalise(convolve(x, conv), norm))


def test_pass_variants_equal_their_formula() -> None:
    model = pass_layer.PassVariants(channels=5).double().eval()
    randomise(model)
    nn.init.constant_(model.scaled.skip.get_parameter("factor"), -0.7)
    x = randn(2, 5, 6, 7, scale=20.0)

    def body(x: Tensor, block: pass_layer.SkipBlock) -> Tensor:
        conv1, norm1, _, conv2, norm2 = block.body
        return normalise(convolve(relu(normalise(convolve(x, conv1), norm1)), conv2), norm2)

    out = relu(body(x, model.scaled) + -0.7 * x)
    assert (out > 6).any(), "nothing to clamp: the clamped block would not be tested"
    out = relu(body(out, model.clamped) + torch.where(out > 6, 6.0, relu(out)))
    out = relu(body(out, model.normalised) + normalise(out, model.normalised.skip))
    out = relu(body(out, model.passed) + out)

    torch.testing.assert_close(model(x), out)


def test_clamp_has_both_bounds() -> None:
    # Inside PassVariants a ReLU stands before the clamp, so that only the upper bound acts there.
    clamped = pass_layer.Clamp()(torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0]))
    assert clamped.tolist() == [0, 0, 3, 6, 6]


def test_pass_variants_scale_by_half_at_first_with_eight_channels() -> None:
    model = pass_layer.PassVariants()
    assert model.scaled.skip.get_parameter("factor").item() == 0.5
    assert model(torch.zeros(1, 8, 4, 4)).shape == (1, 8, 4, 4)
