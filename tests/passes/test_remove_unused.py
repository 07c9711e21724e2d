"""What reaches no output goes; inputs and effects stay."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from passfx.graph.query import op_name, operators
from passfx.passes.remove_unused import RemoveUnused
from passfx.pipeline import optimize_graph
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Model, constants, run


class Before(nn.Module):
    """The branch through `unused` reaches no output once the graph's result is cut to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 4)
        self.unused = nn.Linear(4, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.used(x)
        return z.relu(), self.unused(z).sigmoid() + y.sum()


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (self.used(x).relu(),)


def cut(model: nn.Module, *inputs: Tensor, keep: int = 1) -> GraphModule:
    """A captured graph that returns only the first results; making it dead is the test's to do.

    Capture itself already drops what the model does not return.
    """
    graph_module, _ = optimize_graph(captured(model, *inputs), [])
    output = graph_module.graph.output_node()
    output.args = (list(output.args[0])[:keep],)
    return graph_module


def test_a_dead_branch_is_one_rewrite() -> None:
    inputs = torch.randn(2, 3), torch.randn(4)
    graph = cut(Before(), *inputs)
    editor = RemoveUnused().run(graph)
    editor.finish()
    assert_same_structure(graph, Expected(), *inputs)
    (rewrite,) = editor.rewrites
    assert rewrite.what == "4 operators reach no output"
    assert sorted(rewrite.removed) == ["add", "linear_1", "sigmoid", "sum_1"]
    assert set(constants(graph)) == {"used.weight", "used.bias"}


def test_two_dead_branches_are_two_rewrites() -> None:
    model = Model(lambda m, x: (x + 1, x.relu().exp(), x.sigmoid()))
    graph = cut(model, torch.randn(3))
    editor = RemoveUnused().run(graph)
    assert sorted(rewrite.removed for rewrite in editor.rewrites) == [("relu", "exp"), ("sigmoid",)]
    assert [op_name(node) for node in operators(graph)] == ["add"]


def test_both_parts_of_an_unused_split_go() -> None:
    model = Model(lambda m, x: (x + 1, x.chunk(2)[0] * x.chunk(2)[1]))
    graph = cut(model, torch.randn(4))
    editor = RemoveUnused().run(graph)
    editor.finish()
    assert [op_name(node) for node in graph.graph.nodes if node.op == "call_function"] == ["add"]


def test_keeps_an_input_that_nothing_reads() -> None:
    graph, editor = apply(
        RemoveUnused(), Model(lambda m, x, y: x + 1), torch.ones(2), torch.ones(3)
    )
    assert not editor.modified
    assert [node.name for node in graph.graph.find_nodes(op="placeholder")] == [
        "inputs_0",
        "inputs_1",
    ]


def test_keeps_a_weight_that_two_branches_share() -> None:
    model = Model(lambda m, x: (m.linear(x), m.linear(x).relu()), linear=nn.Linear(3, 3))
    graph = cut(model, torch.randn(2, 3))
    editor = RemoveUnused().run(graph)
    editor.finish()
    assert len(editor.rewrites) == 1
    assert set(constants(graph)) == {"linear.weight", "linear.bias"}


def test_keeps_an_assertion() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        torch.ops.aten._assert_async.msg(x.sum() > 0, "not positive")
        return x + 1, x * 2

    graph = cut(Model(forward), torch.ones(3))
    editor = RemoveUnused().run(graph)
    assert [rewrite.removed for rewrite in editor.rewrites] == [("mul",)]
    assert any("assert" in op_name(node) for node in operators(graph))


def test_a_graph_without_dead_code_is_left_alone() -> None:
    graph, editor = apply(RemoveUnused(), Before(), torch.randn(2, 3), torch.randn(4))
    assert not editor.modified
    assert ops(graph)["linear"] == 2


@settings(deadline=None, max_examples=draws(6))
@given(data=st.data())
def test_what_is_left_preserves_exactly(data: st.DataObject) -> None:
    """A random graph of sums: exactly the ancestors of the kept results are left."""
    pairs = [
        (data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))
        for n in range(data.draw(st.integers(1, 8)))
    ]
    keep = data.draw(st.integers(1, len(pairs)))

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        values = [x]
        for number, (left, right) in enumerate(pairs):
            values.append(values[left] + values[right] * (number + 2))
        return values[1:]

    model, x = Model(forward), torch.arange(5.0)
    graph = cut(model, x, keep=keep)
    RemoveUnused().run(graph).finish()
    needed, pending = set(), list(range(1, keep + 1))
    while pending:
        value = pending.pop()
        if value and value not in needed:
            needed.add(value)
            pending += pairs[value - 1]
    assert ops(graph) == {"add": len(needed), "mul": len(needed)}
    graph.graph._codegen.pytree_info = graph.graph._codegen.pytree_info._replace(out_spec=None)
    graph.recompile()
    for result, wanted in zip(graph(x), run(model, x)[:keep], strict=True):
        assert torch.equal(result, wanted)
    assert not RemoveUnused().run(graph).modified
