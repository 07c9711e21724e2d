"""Blocks that are sums of branches become the one convolution that they equal."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import reparam
from tests.helpers import ops
from tests.models import BLOCKS
from tests.zoo.proven import optimize
from tests.zoo.structure import groups

# The groups of the one convolution that a block becomes, where it has any.
GROUPS = {
    "repvgg_groups": 2,
    **dict.fromkeys(("mobileone_depthwise", "mobileone_stride"), 4),
    **dict.fromkeys(("diverse_groups", "diverse_groups_stride", "repmixer", "dilated"), 4),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_one_convolution(name: str) -> None:
    optimized = optimize(BLOCKS[name](), 2, 4, 11, 14)
    assert sum(ops(optimized.captured.graph_module).values()) > 3
    assert ops(optimized.module) == {"conv2d": 1}
    assert groups(optimized.module) == [GROUPS.get(name, 1)]


class FilledBorder(nn.Module):
    """1x1 + norm, a border of the norm's value at 0, 3x3 + norm, as DBB's authors wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = reparam.conv_norm(4, 4, 1)
        self.second = reparam.conv_norm(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.first[1]
        border = norm.bias - norm.running_mean * norm.weight / torch.sqrt(
            norm.running_var + norm.eps
        )
        border = border.view(1, -1, 1, 1)
        padded = functional.pad(self.first(x), (1, 1, 1, 1))
        padded[:, :, 0:1, :] = border
        padded[:, :, -1:, :] = border
        padded[:, :, :, 0:1] = border
        padded[:, :, :, -1:] = border
        out: Tensor = self.second(padded)
        return out


def test_a_border_that_is_written_in_place_becomes_padding() -> None:
    assert ops(optimize(FilledBorder(), 2, 4, 11, 14).module) == {"conv2d": 1}


def test_a_bias_before_a_zero_border_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    optimized = optimize(model, 2, 4, 11, 14)
    assert ops(optimized.module) == {"conv2d": 2}
    (run,) = [run for run in optimized.report.passes if run.name == "collapse"]
    (refusal,) = run.refusals
    assert refusal.at == "conv2d_1"
    assert refusal.reason == (
        "its padding is zeros where the operator before, past the border, has values"
    )
