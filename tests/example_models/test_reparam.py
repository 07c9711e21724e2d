"""The re-parameterised blocks compute what their papers write down."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import reparam
from tests.helpers import randomize

# The block, the shape of its input, the shape of its output.
SHAPES: list[tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = [
    (lambda: reparam.RepVGGBlock(4, 4), (2, 4, 7, 9), (2, 4, 7, 9)),
    (lambda: reparam.RepVGGBlock(4, 6, stride=2, groups=2), (2, 4, 7, 9), (2, 6, 4, 5)),
    (lambda: reparam.MobileOneBlock(4, 4, 3, 2, groups=4), (2, 4, 7, 9), (2, 4, 4, 5)),
    (lambda: reparam.MobileOneBlock(4, 6, 1), (2, 4, 7, 9), (2, 6, 7, 9)),
    (lambda: reparam.ACBlock(4, 6, 3, 1), (2, 4, 7, 9), (2, 6, 7, 9)),
    (lambda: reparam.ACBlock(4, 6, 3, 0), (2, 4, 7, 9), (2, 6, 5, 7)),
    (lambda: reparam.ACBlock(4, 6, 3, 2), (2, 4, 7, 9), (2, 6, 9, 11)),
    (lambda: reparam.ACBlock(4, 6, 5, 1, stride=2), (2, 4, 7, 9), (2, 6, 3, 4)),
    (lambda: reparam.DiverseBranchBlock(4, 6), (2, 4, 7, 9), (2, 6, 7, 9)),
    (lambda: reparam.DiverseBranchBlock(4, 6, 5, 2, groups=2), (2, 4, 7, 9), (2, 6, 4, 5)),
    (lambda: reparam.EdgeBlock(4, 6), (2, 4, 7, 9), (2, 6, 7, 9)),
    (lambda: reparam.EdgeBlock(4, 4, identity=True), (2, 4, 7, 9), (2, 4, 7, 9)),
    (lambda: reparam.AlphaBlock(4, 6), (2, 4, 7, 9), (2, 6, 7, 9)),
    (lambda: reparam.QARepVGGBlock(4, 6, stride=2), (2, 4, 7, 9), (2, 6, 4, 5)),
    (lambda: reparam.RepMixer(4, 7), (2, 4, 7, 9), (2, 4, 7, 9)),
    (lambda: reparam.DilatedBlock(4), (2, 4, 7, 9), (2, 4, 7, 9)),
]


@pytest.mark.parametrize(("build", "given", "wanted"), SHAPES)
def test_shapes(
    build: Callable[[], nn.Module], given: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    block = build()
    assert block(torch.randn(given)).shape == wanted  # in training mode
    assert block.eval()(torch.randn(given)).shape == wanted


def prepared(block: nn.Module) -> nn.Module:
    """Random norms, float64, eval mode."""
    return randomize(block).double().eval()


def normalise(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Write eval-mode batch norm out, arXiv:1502.03167."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance, weight, bias = (
        values[:, None, None]
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias


def bordered(x: Tensor, border: Tensor) -> Tensor:
    """A border of one pixel with one value per channel, written pixel by pixel."""
    count, channels, height, width = x.shape
    out = border.view(1, -1, 1, 1).expand(count, channels, height + 2, width + 2).clone()
    out[:, :, 1:-1, 1:-1] = x
    return out


@torch.no_grad()
def test_repvgg_is_three_branches() -> None:
    block = prepared(reparam.RepVGGBlock(4, 4))
    (square, norm3), (point, norm1), norm0 = block.branches
    x = torch.randn(2, 4, 5, 6).double()
    wanted = (
        normalise(functional.conv2d(x, square.weight, padding=1), norm3)
        + normalise(torch.einsum("oi,nihw->nohw", point.weight[:, :, 0, 0], x), norm1)
        + normalise(x, norm0)
    )
    torch.testing.assert_close(block(x), wanted)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (3, 2), (5, 1)])
def test_acblock_is_one_kernel_with_a_cross_added(kernel: int, padding: int) -> None:
    block = prepared(reparam.ACBlock(2, 3, kernel, padding))
    x = torch.randn(2, 2, 8, 9).double()
    middle = kernel // 2
    total = torch.zeros(1, dtype=torch.float64)
    for branch, rows, columns in (
        (block.square, slice(None), slice(None)),
        (block.column, slice(None), slice(middle, middle + 1)),
        (block.row, slice(middle, middle + 1), slice(None)),
    ):
        weight = torch.zeros(3, 2, kernel, kernel, dtype=torch.float64)
        weight[:, :, rows, columns] = branch[0].weight
        total = total + normalise(functional.conv2d(x, weight, padding=padding), branch[1])
    torch.testing.assert_close(block(x), total)


@torch.no_grad()
def test_diverse_branches_have_a_border_of_what_the_first_norm_makes_of_zero() -> None:
    block = prepared(reparam.DiverseBranchBlock(3, 4))
    x = torch.randn(2, 3, 5, 6).double()
    (point, norm1), (square, norm2) = block.sequence
    border = normalise(torch.zeros(1, 3, 1, 1).double(), norm1)
    inner = bordered(normalise(functional.conv2d(x, point.weight), norm1), border)
    wanted = normalise(functional.conv2d(inner, square.weight), norm2)
    (point, norm1), _, norm2 = block.average
    border = normalise(torch.zeros(1, 4, 1, 1).double(), norm1)
    inner = bordered(normalise(functional.conv2d(x, point.weight), norm1), border)
    wanted = wanted + normalise(functional.avg_pool2d(inner, 3, 1), norm2)
    square, norm = block.square
    wanted = wanted + normalise(functional.conv2d(x, square.weight, padding=1), norm)
    point, norm = block.pointwise
    wanted = wanted + normalise(functional.conv2d(x, point.weight), norm)
    torch.testing.assert_close(block(x), wanted)


@torch.no_grad()
def test_edge_branches_have_a_border_of_the_first_bias() -> None:
    block = prepared(reparam.EdgeBlock(4, 4, identity=True))
    x = torch.randn(2, 4, 5, 6).double()
    plain, (first, second), *edges, _ = block.branches
    inner = bordered(functional.conv2d(x, first.weight, first.bias), first.bias)
    wanted = (
        x
        + functional.conv2d(x, plain.weight, plain.bias, padding=1)
        + functional.conv2d(inner, second.weight, second.bias)
    )
    for point, edge in edges:
        inner = bordered(functional.conv2d(x, point.weight, point.bias), point.bias)
        for channel in range(4):
            kernel = edge.scale[channel] * edge.mask
            filtered = functional.conv2d(inner[:, channel : channel + 1], kernel[None])
            wanted[:, channel] += filtered[:, 0] + edge.bias[channel]
    torch.testing.assert_close(block(x), wanted)


@torch.no_grad()
def test_edge_filters_are_flat_on_a_flat_image_and_see_a_slope() -> None:
    slope = torch.arange(6.0).expand(1, 1, 6, 6)
    for mask, seen in ((reparam.SOBEL_X, -8.0), (reparam.SOBEL_Y, 0.0), (reparam.LAPLACIAN, 0.0)):
        kernel = torch.tensor([[mask]], dtype=torch.float32)
        assert torch.equal(functional.conv2d(slope, kernel), torch.full((1, 1, 4, 4), seen))
        assert kernel.sum() == 0


@torch.no_grad()
def test_repmixer_with_a_scale_of_zero_is_the_identity() -> None:
    block = prepared(reparam.RepMixer(4))
    x = torch.randn(2, 4, 5, 6).double()
    nn.init.constant_(block.scale, 0.5)
    wanted = x + 0.5 * (block.mixer(x) - normalise(x, block.norm))
    torch.testing.assert_close(block(x), wanted)
    nn.init.zeros_(block.scale)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_dilated_branches_are_sparse_kernels_of_13_at_most() -> None:
    block = prepared(reparam.DilatedBlock(2))
    x = torch.randn(1, 2, 9, 10).double()
    wanted = torch.zeros_like(x)
    for conv, norm in block.branches:
        step, size = conv.dilation[0], conv.weight.shape[-1]
        first = 6 - step * (size // 2)
        last = 12 - first
        kernel = torch.zeros(2, 1, 13, 13, dtype=torch.float64)
        kernel[:, :, first : last + 1 : step, first : last + 1 : step] = conv.weight
        wanted += normalise(functional.conv2d(x, kernel, padding=6, groups=2), norm)
    torch.testing.assert_close(block(x), normalise(wanted, block.norm))
