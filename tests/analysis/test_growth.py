"""What a rewrite adds to a file is weighed against its gain."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from passfx.analysis.cost import graph_cost
from passfx.analysis.growth import Addition, too_large
from passfx.graph.query import is_call
from passfx.passes.collapse import Collapse
from passfx.passes.move_resampling import MoveResampling
from passfx.passes.share_common import ShareCommon
from tests.helpers import apply, captured, ops, randomize
from tests.passes.strategies import Model

WEIGHT = 100 * 100 * 4  # bytes


@pytest.fixture(scope="module")
def graph() -> GraphModule:
    """Two products with one weight, and one with another."""
    weights = {"a": torch.randn(100, 100), "b": torch.randn(100, 100)}
    model = Model(lambda m, x: (x @ m.a, (x + 1) @ m.a, x @ m.b), **weights)
    return captured(model, torch.randn(1, 100)).graph_module


def additions(graph: GraphModule, added: float, seconds: float) -> list[Addition]:
    calls = [node for node in graph.graph.nodes if is_call(node, torch.ops.aten.matmul)]
    return [Addition(node, [node], int(added), seconds) for node in calls]


def test_a_new_constant_in_place_of_an_old_one_is_free(graph: GraphModule) -> None:
    assert not too_large(additions(graph, WEIGHT, 0.0))
    assert not too_large(additions(graph, WEIGHT + 4096, 0.0))


def test_a_new_constant_beside_a_shared_one_is_not(graph: GraphModule) -> None:
    first, second, third = additions(graph, WEIGHT, 1e-6)
    assert too_large([first, third]) == {first: "would make the file 40.0 kB larger to save 1.0 µs"}
    assert not too_large([first, second, third])  # equal ones, which are stored once
    dear = Addition(second.at, second.nodes, WEIGHT + 100, 1e-6)
    assert [*too_large([first, dear, third])] == [first, dear]


def test_a_gain_pays_for_bytes(graph: GraphModule) -> None:
    assert not too_large(additions(graph, WEIGHT, 1e-5)[:1])
    (reason,) = too_large(additions(graph, 1e8, 1e-3)[:1]).values()
    assert reason == "would make the file 100.0 MB larger to save 1000.0 µs"


def test_no_loss_of_time_makes_a_file_smaller(graph: GraphModule) -> None:
    """A negative gain is none: it does not count against what is free."""
    assert not too_large(additions(graph, WEIGHT, -1.0))


# ----------------------------------------------------------------------------------- in the passes


class TiedHead(nn.Module):
    """A language model's embedding and head, with a scale between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.bias = nn.Parameter(torch.randn(1000))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = functional.linear(self.embedding(tokens) * 8.0, self.embedding.weight)
        return logits * 0.5 + self.bias


def test_a_scale_stays_beside_a_tied_weight() -> None:
    graph, editor = apply(Collapse(), TiedHead().double(), torch.tensor([[1, 2, 3]]))
    assert ops(graph)["linear"] == ops(graph)["embedding"] == 1
    assert graph_cost(graph).weight_bytes == 8 * (1000 * 64 + 1000)
    (found,) = (item for item in editor.refusals if item.at == "linear")
    assert found.reason == "2 operators as one would make the file 512.0 kB larger to save 2.1 µs"
    assert not Collapse().run(graph).modified


def tower(m: Any, x: Tensor) -> list[Tensor]:
    """A head that reads images of several sizes, as detectors have it."""
    sizes = (x, functional.max_pool2d(x, 2), functional.max_pool2d(x, 4))
    return [m.norms[n % len(m.norms)](m.conv(y)).relu() for n, y in enumerate(sizes)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_layer_that_is_called_at_several_sizes(count: int) -> None:
    """With one norm every call becomes the same; with one a call each would store it anew."""
    torch.manual_seed(0)
    norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in range(count))
    model = Model(tower, conv=nn.Conv2d(64, 64, 3, padding=1, bias=False), norms=norms)
    graph, editor = apply(Collapse(), randomize(model), torch.randn(1, 64, 8, 8))
    ShareCommon()(graph)
    assert ops(graph)["batch_norm"] == (0 if count == 1 else 3)
    assert graph_cost(graph).weight_bytes <= 4 * (9 * 64 * 64 + count * 4 * 64)
    refused = [item.reason for item in editor.refusals if "larger" in item.reason]
    assert len(refused) == (0 if count == 1 else 3)


def test_other_passes_are_weighed_by_what_they_add() -> None:
    """A head that goes before its pool becomes linear, beside the same weight as a convolution."""
    conv = nn.Conv2d(64, 256, 1).double()

    def twice(m: Any, x: Tensor) -> Any:
        return m.conv(x).mean((2, 3)), m.conv(x.sin()).exp()

    x = torch.randn(1, 64, 3, 3, dtype=torch.float64)
    graph, editor = apply(MoveResampling(), Model(twice, conv=conv), x)
    before = 8 * (256 * 64 + 256)
    assert not editor.modified
    assert graph_cost(graph).weight_bytes == before
    assert any("would make the file" in item.reason for item in editor.refusals)
    assert not any(item.undone for item in editor.refusals)
    alone, editor = apply(MoveResampling(), Model(lambda m, x: twice(m, x)[0], conv=conv), x)
    assert editor.modified and ops(alone)["linear"] == 1
