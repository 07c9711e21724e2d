"""Layers whose weights are all zero."""

from typing import Any

import torch
from torch import Tensor, nn

from passfx.analysis.untrained import zero_layers
from tests.helpers import captured, randomize


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.group = nn.GroupNorm(2, 4)
        self.alpha = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 5)
        randomize(self)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x).relu()
        x = x + self.alpha * self.body(x) * 0.0
        return self.head(self.group(x).mean((2, 3)))


def found(model: nn.Module) -> tuple[str, ...]:
    return zero_layers(captured(model, torch.randn(1, 3, 5, 5)).graph_module.graph)


def test_trained_layers() -> None:
    assert found(Blocks()) == ()


def test_zero_layers_norms_and_scales_are_named_once() -> None:
    model = Blocks()
    zeros = (model.conv.weight, model.body[1].weight, model.group.weight, model.alpha)
    for item in zeros:
        nn.init.zeros_(item)
    assert found(model) == ("conv", "body.1", "mul", "group")
    nn.init.zeros_(model.head.weight)
    assert found(model)[-1] == "head"


def test_a_bias_of_zero_is_no_matter() -> None:
    model = Blocks()
    for item in (model.conv.bias, model.body[1].bias, model.head.bias):
        nn.init.zeros_(item)
    assert found(model) == ()
