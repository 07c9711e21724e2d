"""Equal expressions are computed once, equal constants are stored once, to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passfx.graph.text import to_text
from passfx.passes.share_common import ShareCommon
from passfx.pipeline import optimize_graph
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Model, constants, run

Function = Callable[..., Any]

# ------------------------------------------------------------------------------------------- fires


class Before(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.relu()).exp() + self.linear(x.relu()).exp().sin()


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.relu()).exp()
        return y + y.sin()


def test_an_expression_written_twice_is_computed_once() -> None:
    model, x = Before(), torch.randn(2, 3)
    graph, editor = apply(ShareCommon(), model, x)
    assert_same_structure(graph, Expected(), x)
    assert len(editor.rewrites) == 3
    assert editor.rewrites[0].what == "an expression equal to relu"
    assert torch.equal(run(graph, x), run(model, x))


def test_parts_of_a_split_and_keyword_arguments_are_shared() -> None:
    model = Model(
        lambda m, x: torch.cat([*x.split(2), *x.split(2), x.to(torch.float64).float()] * 2)
    )
    graph, _ = apply(ShareCommon(), model, x := torch.randn(4, 3))
    assert ops(graph) == {"split": 1, "cat": 1, "to": 2}
    assert torch.equal(run(graph, x), run(model, x))


SHARED: dict[str, tuple[Tensor, Tensor]] = {
    "equal": (torch.arange(6.0), torch.arange(6.0)),
    "of integers": (torch.arange(6), torch.arange(6)),
    "of booleans": (torch.tensor([True, False]), torch.tensor([True, False])),
    "in half precision": (torch.ones(3).half(), torch.ones(3).half()),
    "in bfloat16": (torch.ones(3).bfloat16(), torch.ones(3).bfloat16()),
    "complex": (torch.tensor([1 + 2j]), torch.tensor([1 + 2j])),
    "not a number": (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
    "infinite": (torch.tensor(-float("inf")), torch.tensor(-float("inf"))),
    "of other strides": (
        torch.arange(6.0).view(2, 3).T.contiguous(),
        torch.arange(6.0).view(2, 3).T,
    ),
    "0-d": (torch.tensor(2.0), torch.tensor(2.0)),
    "empty": (torch.empty(0, 3), torch.empty(0, 3)),
}
DISTINCT: dict[str, tuple[Tensor, Tensor]] = {
    "0 and -0": (torch.zeros(4), -torch.zeros(4)),
    "0 and -0 far inside": (torch.zeros(99), torch.zeros(99).index_fill(0, torch.tensor(77), -0.0)),
    "the last element": (torch.arange(99.0), torch.arange(99.0).index_fill(0, torch.tensor(98), 0)),
    "numbers and no numbers": (torch.tensor([1.0]), torch.tensor([float("nan")])),
    "by one rounding": (torch.tensor(1.0), torch.tensor(1.0).nextafter(torch.tensor(2.0))),
    "of other shapes": (torch.zeros(4), torch.zeros(2, 2)),
    "of other dtypes": (torch.zeros(4), torch.zeros(4, dtype=torch.float64)),
    "integers and numbers": (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    "conjugates": (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
}


def pair_count(a: Tensor, b: Tensor) -> int:
    model = Model(lambda m, x: (m.a, m.b, x), a=a, b=b)
    graph, editor = apply(ShareCommon(), model, torch.ones(1))
    left = constants(graph)
    assert len(left) + len(editor.rewrites) == 2
    return len(left)


@pytest.mark.parametrize("kind", SHARED)
def test_equal_constants_are_stored_once(kind: str) -> None:
    assert pair_count(*SHARED[kind]) == 1


@pytest.mark.parametrize("kind", DISTINCT)
def test_keeps_constants_that_differ(kind: str) -> None:
    assert pair_count(*DISTINCT[kind]) == 2


def test_copies_of_a_layer_are_computed_once() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    model, x = Model(lambda m, x: m.a(x) + m.b(x), a=a, b=b), torch.randn(2, 3)
    graph, editor = apply(ShareCommon(), model, x)
    assert ops(graph) == {"linear": 1, "add": 1}
    assert len(editor.rewrites) == 3  # weight, bias and the product itself
    assert set(constants(graph)) == {"a.weight", "a.bias"}
    assert torch.equal(run(graph, x), run(model, x))


def test_tied_weights_stay_tied() -> None:
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    model = Model(lambda m, i: m.head(m.embedding(i)), embedding=embedding, head=head)
    graph, _ = apply(ShareCommon(), model, i := torch.arange(5))
    assert len(constants(graph)) == 1
    assert torch.equal(run(graph, i), run(model, i))
    assert head.weight is embedding.weight


# ------------------------------------------------------------------------------- refuses and keeps

KEPT: dict[str, Function] = {
    "1 and 1.0 on integers": lambda m, x, i: torch.cat([(i * 1).float(), i * 1.0]),
    "1 and True on integers": lambda m, x, i: (i + 1) - (i + True),
    "0.0 and -0.0": lambda m, x, i: x.clamp(min=0.0) / x.clamp(min=-0.0),
    "other attributes": lambda m, x, i: x.sum(0, keepdim=True) + x.sum(0),
    "other operands": lambda m, x, i: (x - i) + (i - x),
    "other operators": lambda m, x, i: x.sin() + x.cos(),
    "other dtypes": lambda m, x, i: x.to(torch.float64) + x.to(torch.float16),
}


@pytest.fixture(scope="module")
def given_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(3), torch.arange(3)


@pytest.mark.parametrize("form", KEPT)
def test_keeps(form: str, given_inputs: tuple[Tensor, Tensor]) -> None:
    model = Model(KEPT[form])
    graph, editor = apply(ShareCommon(), model, *given_inputs)
    assert not editor.modified
    assert to_text(graph) == to_text(captured(model, *given_inputs).graph_module)


def test_random_operators_are_not_shared() -> None:
    """Capture refuses them, so the graph is built here: the deep copy of a dropout, say."""
    graph, _ = optimize_graph(captured(Model(lambda m, x: x.sin() + x.sin()), torch.randn(3)), [])
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default):
        node.target = torch.ops.aten.bernoulli.default
    assert not ShareCommon().run(graph).modified
    assert ops(graph) == {"bernoulli": 2, "add": 1}


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(6))
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["relu", "sin", "mul", "add", "scale"]),
            st.sampled_from([1, 1.0, 2, True]),
        ),
        min_size=2,
        max_size=10,
    )
)
def test_random_graphs_preserve_exactly(steps: list[tuple[int, str, Any]]) -> None:
    def forward(m: Any, x: Tensor, i: Tensor) -> list[Tensor]:
        values = [x, i]
        for index, kind, number in steps:
            value = values[index % len(values)]
            if kind in ("relu", "sin"):
                value = getattr(value, kind)()
            elif kind == "scale":
                value = value * (m.a if number == 1 else m.b)
            else:
                value = getattr(value, kind)(number)
            values.append(value)
        return values

    model = Model(forward, a=torch.tensor([1.0, 2.0]), b=torch.tensor([1.0, 2.0]))
    inputs = torch.randn(2), torch.arange(2)
    graph, _ = apply(ShareCommon(), model, *inputs)
    for result, wanted in zip(run(graph, *inputs), run(model, *inputs), strict=True):
        assert result.dtype == wanted.dtype
        assert torch.equal(result, wanted)
    calls = [line.partition(" = ")[2] for line in to_text(graph).splitlines() if " = " in line]
    assert len(calls) == len(set(calls))
    assert not ShareCommon().run(graph).modified
