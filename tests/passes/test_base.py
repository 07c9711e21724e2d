"""Each pass through the public ways: called on a graph module, and inside a PassManager."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn import functional

from passfx.graph.editor import Certificate
from passfx.passes import PASSES, Pass
from passfx.passes.base import explanation, summary
from passfx.passes.remove_unused import RemoveUnused
from passfx.pipeline import optimize_graph
from tests.helpers import assert_preserves, captured, ops, randomize
from tests.passes.strategies import run


class Net(nn.Module):
    """One place for each pass; dead code is made by `traced`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.plain = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.one, self.full = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)
        nn.init.constant_(self.one.bias, 0.5)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.wide, self.joint = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)
        self.halved, self.last = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.norm(self.plain(x)) / 1.0).relu().clamp(max=6.0)
        y = y + self.conv(x).sin() + self.conv(x).sin()
        y = self.full(functional.pad(self.one(y), (1, 1, 1, 1), value=0.5))
        y = y * torch.sigmoid(y)
        y = self.left(y).sigmoid() + self.right(y).sigmoid()
        y = torch.cat([self.wide(y), self.plain(x)[:, :, :5, :6]], 1)
        y = functional.avg_pool2d(self.halved(self.joint(y).sin()), 2).exp()
        y = self.halved(functional.interpolate(y.repeat(1, 2, 1, 1), scale_factor=8.0)).cos()
        y = self.head(self.last(y).mean((2, 3)))[None]
        return functional.scaled_dot_product_attention(y, y, y, self.mask)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 5, 6, dtype=torch.float64)


@pytest.fixture
def model() -> nn.Module:
    return randomize(Net().double())


@pytest.fixture
def graph(model: nn.Module, x: Tensor) -> GraphModule:
    graph_module, _ = optimize_graph(captured(model, x), [])
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        dead = graph_module.graph.call_function(
            torch.ops.aten.exp.default, (output.args[0][0],), name="dead"
        )
    dead.meta["val"] = output.args[0][0].meta["val"]
    graph_module.recompile()
    return graph_module


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_called_on_a_graph_returns_a_pass_result(
    kind: type[Pass], model: nn.Module, graph: GraphModule, x: Tensor
) -> None:
    result = kind()(graph)
    assert isinstance(result, PassResult)
    assert result.modified
    assert result.graph_module is graph
    assert_preserves(graph, model, [x])
    torch.testing.assert_close(run(graph, x), run(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_called_again_reports_no_change(kind: type[Pass], graph: GraphModule) -> None:
    kind()(graph)
    before = str(graph.graph)
    assert not kind()(graph).modified
    assert str(graph.graph) == before


def test_the_passes_run_in_a_pass_manager(model: nn.Module, graph: GraphModule, x: Tensor) -> None:
    manager = PassManager([kind() for kind in PASSES], run_checks_after_each_pass=True)
    result = manager(graph)
    assert result.modified
    after = ops(result.graph_module)
    assert (after["conv2d"], after["linear"], after["clamp"], after["split_with_sizes"]) == (
        6,
        1,
        1,
        2,
    )
    assert not {"batch_norm", "avg_pool2d", "constant_pad_nd", "mul", "relu"} & after.keys()
    assert_preserves(result.graph_module, model, [x])
    assert not manager(result.graph_module).modified


@pytest.mark.parametrize("kind", PASSES)
def test_a_graph_without_fake_values_is_left_alone(
    kind: type[Pass], model: nn.Module, x: Tensor
) -> None:
    plain = symbolic_trace(Plain().double().eval())
    before = str(plain.graph)
    result = kind()(plain)
    assert isinstance(result, PassResult)
    assert not result.modified
    assert result.graph_module is plain
    assert str(plain.graph) == before


class Plain(nn.Module):
    """Has something for every pass, were it captured."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x.exp()
        return self.norm(self.conv(x)).relu().relu() * 1 + 0


@pytest.mark.parametrize("kind", [item for item in PASSES if item is not RemoveUnused])
def test_a_rewrite_whose_certificate_fails_is_undone(kind: type[Pass], graph: GraphModule) -> None:
    """The nodes and the constants are those of before, and the refusal names the failure."""

    def never(edit: Any) -> Certificate:
        return Certificate(1.0, "a certificate that always fails")

    before = str(graph.graph)
    editor = kind().run(graph, never)
    editor.finish()
    assert not editor.modified
    assert "undone: a certificate that always fails" in {item.reason for item in editor.refusals}
    assert str(graph.graph) == before


def test_names_are_unique_and_summaries_are_sentences() -> None:
    assert len({kind.name for kind in PASSES}) == len(PASSES)
    assert all(summary(kind).endswith(".") for kind in PASSES)
    assert all(explanation(kind).startswith(summary(kind)) for kind in PASSES)
