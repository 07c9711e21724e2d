"""models/resnet.py: the variants have the parameters, strides and formulas of their papers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models import resnet
from tests.example_models.formulas import convolve, normalise, randn, randomise, relu


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "variant", "count"),
    [
        # He et al. report no counts; these are torchvision's and timm's.
        (resnet.resnet18, "v1", 11_689_512),
        (resnet.resnet18, "v1.5", 11_689_512),
        (resnet.resnet18, "d", 11_708_744),
        (resnet.resnet50, "v1", 25_557_032),
        (resnet.resnet50, "v1.5", 25_557_032),
        (resnet.resnet50, "d", 25_576_264),
    ],
)
def test_resnet_has_the_published_number_of_parameters(
    build: Callable[..., resnet.ResNet], variant: str, count: int
) -> None:
    assert parameter_count(build(variant)) == count


@pytest.mark.parametrize("variant", resnet.VARIANTS)
@pytest.mark.parametrize("build", [resnet.resnet18, resnet.resnet50])
def test_resnet_returns_one_logit_per_class(
    build: Callable[..., resnet.ResNet], variant: str
) -> None:
    model = build(variant, num_classes=7).eval()
    images = torch.zeros(2, 3, 97, 75)  # 1 more and 11 more than a multiple of 32
    assert model.stages(model.stem(images)).shape[2:] == (4, 3)
    assert model(images).shape == (2, 7)


def test_resnet_takes_its_example_inputs() -> None:
    inputs = resnet.example_inputs()
    assert inputs[0].shape == (1, 3, 224, 224)
    assert torch.equal(inputs[0], resnet.example_inputs()[0])
    model = resnet.resnet18().eval()
    stages = model.stages
    x = model.stem(*inputs)
    shapes = [tuple((x := stage(x)).shape[1:]) for stage in stages]
    assert shapes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def body_strides(model: resnet.ResNet, stage: int) -> list[int]:
    """Return the strides of the convolutions in the body of a stage's first block."""
    body = model.stages.get_submodule(f"{stage}.0.body")
    return [conv.stride[0] for conv in body.modules() if isinstance(conv, nn.Conv2d)]


@pytest.mark.parametrize(
    ("variant", "strides"),
    [("v1", [2, 1, 1]), ("v1.5", [1, 2, 1]), ("d", [1, 2, 1]), ("preact", [1, 2, 1])],
)
def test_bottleneck_strides_where_its_variant_says(variant: str, strides: list[int]) -> None:
    model = resnet.resnet50(variant)
    assert body_strides(model, stage=0) == [1, 1, 1]
    assert [body_strides(model, stage) for stage in (1, 2, 3)] == [strides] * 3


@pytest.mark.parametrize("variant", resnet.VARIANTS)
def test_basic_block_strides_in_its_first_convolution(variant: str) -> None:
    model = resnet.resnet18(variant)
    assert [body_strides(model, stage) for stage in (0, 1, 2, 3)] == [[1, 1], *[[2, 1]] * 3]


def test_variant_d_averages_where_it_strides() -> None:
    model = resnet.resnet50("d")
    pools = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.AvgPool2d)
    }
    assert list(pools) == [f"stages.{stage}.0.projection.0" for stage in (1, 2, 3)]
    for pool in pools.values():
        assert (pool.kernel_size, pool.stride) == (2, 2)
        assert pool.ceil_mode
        assert not pool.count_include_pad
    stem = [conv for conv in model.stem if isinstance(conv, nn.Conv2d)]
    assert [(conv.kernel_size, conv.stride[0], conv.out_channels) for conv in stem] == [
        ((3, 3), 2, 32),
        ((3, 3), 1, 32),
        ((3, 3), 1, 64),
    ]


@pytest.mark.parametrize("projected", [False, True])
def test_preactivation_block_equals_its_formula(projected: bool) -> None:
    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    projection = nn.Conv2d(4, 4, 1, bias=False) if projected else None
    block = resnet.PreactivationBlock([conv1, conv2], projection).double().eval()
    randomise(block)
    x = randn(2, 4, 5, 7)

    preactivated = relu(normalise(x, block.preactivation[0]))
    body = relu(normalise(convolve(preactivated, conv1), block.body[1]))
    body = convolve(body, conv2)
    skip = x if projection is None else convolve(preactivated, projection)

    torch.testing.assert_close(block(x), body + skip)


def test_preact_resnet_has_no_batch_norm_in_stem_and_projections() -> None:
    model = resnet.resnet50("preact")
    assert [type(layer) for layer in model.stem] == [nn.Conv2d, nn.MaxPool2d]
    for stage in range(4):
        projection = model.stages.get_submodule(f"{stage}.0.projection")
        assert [type(layer) for layer in projection.children()] == [nn.Conv2d]


def test_preact_resnet_ends_in_batch_norm_and_relu() -> None:
    norm, activation = resnet.resnet50("preact").final
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 2048
    assert isinstance(activation, nn.ReLU)


@pytest.mark.parametrize("projected", [False, True])
def test_postactivation_block_equals_its_formula(projected: bool) -> None:
    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    projection = nn.Conv2d(4, 4, 1, bias=False) if projected else None
    block = resnet.PostactivationBlock([conv1, conv2], projection).double().eval()
    randomise(block)
    x = randn(2, 4, 5, 7)

    body = relu(normalise(convolve(x, conv1), block.body[1]))
    body = normalise(convolve(body, conv2), block.body[4])
    skip = x if projection is None else convolve(x, projection)

    torch.testing.assert_close(block(x), relu(body + skip))


@pytest.mark.parametrize("build", [resnet.resnet18, resnet.resnet50])
def test_unknown_variant_is_refused_with_the_known_ones(
    build: Callable[..., resnet.ResNet],
) -> None:
    message = "There is no ResNet variant 'v2'; choose one of 'v1', 'v1.5', 'd', 'preact'."
    with pytest.raises(ValueError, match=f"^{message}$"):
        build("v2")
