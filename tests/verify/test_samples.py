"""Samples of other sizes: inside the rules, and at the ends of the ranges."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from passfx.verify.parity import draw_samples
from tests.helpers import captured


class Of(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("body", "dim", "ends", "step"),
    [
        (lambda x: x * 2, Dim("h", min=3, max=16), (3, 16), 1),
        (lambda x: x * 2, Dim("h", max=1000), (1, 16), 1),
        (lambda x: x * 2, Dim.DYNAMIC, (1, 16), 1),
        (lambda x: F.pad(x, (0, 1)) if x.shape[1] % 2 else x, Dim.DYNAMIC, (2, 16), 2),
        (lambda x: x.reshape(2, -1, 4), Dim.DYNAMIC, (4, 16), 4),
        (lambda x: x[:, :12] * 2, Dim.DYNAMIC, (1, 11), 1),
    ],
    ids=["range", "far end", "any", "even", "multiples", "slice"],
)
def test_samples_reach_the_ends_and_obey_the_rules(
    body: Callable[[Tensor], Tensor], dim: Any, ends: tuple[int, int], step: int
) -> None:
    found = captured(Of(body), torch.randn(2, 8), dynamic_shapes=({1: dim},))
    sizes = {x.shape[1] for (x,) in draw_samples(found, 0)}
    assert (min(sizes), max(sizes)) == ends
    assert all(size % step == 0 for size in sizes)
