"""Folded values that are too small for their dtype: the fold is undone alone, with the reason."""

import pytest
import torch
from torch import Tensor, nn

from passfx.graph.query import is_call
from passfx.pipeline import Plan, optimize_graph
from passfx.verify.error import underflowed
from tests.helpers import captured, randomize

aten = torch.ops.aten


class Pair(nn.Module):
    """Two convolutions with norms; the weights and the scale of a channel of the first are small.

    Either one is a number of float16, but their product is not.
    """

    def __init__(self, weight: float, scale: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        randomize(self)
        with torch.no_grad():
            self.first.weight[1] = weight
            self.norm.weight[1] = scale
            for item in (self.first.bias, self.norm.bias, self.norm.running_mean):
                item.zero_()  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.norm(self.first(x)))))


def folded(model: nn.Module, x: Tensor) -> tuple[int, list[str]]:
    """How many norms are left, and why."""
    graph_module, reports = optimize_graph(captured(model, x), Plan(only=["collapse"]).passes)
    reasons = [refusal.reason for report in reports for refusal in report.refusals]
    return sum(is_call(node, aten.batch_norm) for node in graph_module.graph.nodes), reasons


IMAGE = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def test_a_fold_that_underflows_is_undone_alone() -> None:
    left, reasons = folded(Pair(1e-4, 1e-4).half(), IMAGE.half())
    told = "undone: a folded value underflows torch.float16: a channel loses 100%"
    assert (left, set(reasons)) == (1, {told})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_dtype_holds_is_folded(dtype: torch.dtype) -> None:
    assert folded(Pair(1e-4, 1e-4).to(dtype), IMAGE.to(dtype)) == (0, [])


def test_ordinary_weights_of_half_precision_are_folded() -> None:
    assert folded(Pair(0.1, 0.1).half(), IMAGE.half()) == (0, [])


def test_a_float32_fold_underflows_too() -> None:
    left, reasons = folded(Pair(1e-25, 1e-25), IMAGE)
    assert left == 1 and "underflows torch.float32" in reasons[0]


def test_only_what_is_too_small_is_rounded() -> None:
    exact = torch.tensor([[1.0, 1 / 3], [1e-8, 3e-7]], dtype=torch.float64)
    small = underflowed(exact, torch.float16)
    assert small is not None
    assert torch.equal(small[0], exact[0]) and small[1, 0] == 0
    assert small[1, 1] == pytest.approx(3e-7, rel=0.1) and small[1, 1] != exact[1, 1]


@pytest.mark.parametrize(
    "exact",
    [
        torch.tensor([[1.0, 1 / 3], [1e-8, 3e-1]]).double(),  # nothing beside a larger neighbour
        torch.tensor([[0.0, 0.0], [0.5, 1e5]]).double(),  # zero, and what overflows
        torch.tensor(0.3),
        torch.tensor([1, 2]),
        torch.zeros(0, 3),
    ],
)
def test_what_loses_no_more_than_rounding(exact: Tensor) -> None:
    assert underflowed(exact, torch.float16) is None
