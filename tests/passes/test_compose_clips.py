"""A clip of a clip is one clip, whatever their bounds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from passfx.graph.text import to_text
from passfx.passes.compose_clips import ComposeClips
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Forms, Model, run

Function = Callable[..., Any]
inf = float("inf")

# ------------------------------------------------------------------------------------------- fires


class Before(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).relu().clamp(max=6).clamp(min=-1, max=8) * 2


class Expected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 6.0) * 2


def test_a_row_of_clips_becomes_one() -> None:
    x = torch.randn(2, 3, 4) * 8
    graph, editor = apply(ComposeClips(), Before(), x)
    assert_same_structure(graph, Expected(), x)
    assert len(editor.rewrites) == 3
    assert editor.rewrites[1].what == "relu then clamp is one clip to [0, 6]"
    assert torch.equal(run(graph, x), run(Before(), x))


FIRES: dict[str, tuple[Function, Function]] = {
    "relu, relu": (lambda m, x: x.relu().relu(), lambda m, x: x.relu()),
    "relu, clamp(max=6)": (lambda m, x: x.relu().clamp(max=6), lambda m, x: x.clamp(0.0, 6.0)),
    "relu, clamp_max": (
        lambda m, x: torch.clamp_max(x.relu(), 6),
        lambda m, x: x.clamp(0.0, 6.0),
    ),
    "clamp(max=6), relu": (lambda m, x: x.clamp(max=6).relu(), lambda m, x: x.clamp(0.0, 6.0)),
    "clamp_min, relu": (lambda m, x: torch.clamp_min(x, -2).relu(), lambda m, x: x.relu()),
    "relu6, relu": (lambda m, x: functional.relu6(x).relu(), lambda m, x: functional.relu6(x)),
    "relu, relu6": (lambda m, x: functional.relu6(x.relu()), lambda m, x: x.clamp(0.0, 6.0)),
    "relu6, clamp(max=4)": (
        lambda m, x: functional.relu6(x).clamp(max=4),
        lambda m, x: x.clamp(0.0, 4.0),
    ),
    "hardtanh, relu": (
        lambda m, x: functional.hardtanh(x).relu(),
        lambda m, x: x.clamp(0.0, 1.0),
    ),
    "hardtanh, hardtanh": (
        lambda m, x: functional.hardtanh(functional.hardtanh(x), -2, 0.5),
        lambda m, x: x.clamp(-1.0, 0.5),
    ),
    "disjoint bounds": (lambda m, x: x.clamp(3, 5).clamp(-2, 1), lambda m, x: x.clamp(1.0, 1.0)),
    "a bound of infinity": (lambda m, x: x.relu().clamp(min=inf), lambda m, x: x.clamp(inf, None)),
    "inverted bounds, relu": (
        lambda m, x: x.clamp(min=5, max=2).relu(),
        lambda m, x: x.clamp(5, 2),
    ),
    "relu, inverted bounds": (
        lambda m, x: x.relu().clamp(min=5, max=-2),
        lambda m, x: x.clamp(-2.0, -2.0),
    ),
    "two lower bounds": (
        lambda m, x: x.clamp(min=1).clamp(min=-1),
        lambda m, x: torch.clamp(x, 1),
    ),
    "lower bounds that rise": (
        lambda m, x: x.clamp(min=-1).clamp(min=1),
        lambda m, x: x.clamp(1.0, None),
    ),
    "two upper bounds": (
        lambda m, x: x.clamp(max=1).clamp(max=-1),
        lambda m, x: x.clamp(None, -1.0),
    ),
}


def test_every_pair_becomes_one_clip() -> None:
    x = torch.cat([torch.randn(2, 50) * 4, torch.tensor([[0.0, -0.0], [inf, -1e30]])], 1)
    model = Forms({name: before for name, (before, _) in FIRES.items()}, nn.Module())
    expected = Forms({name: after for name, (_, after) in FIRES.items()}, nn.Module())
    graph, editor = apply(ComposeClips(), model, x)
    assert to_text(graph) == to_text(captured(expected, x).graph_module)
    assert len(editor.rewrites) == len(FIRES)
    wanted = run(model, x)
    for name, result in run(graph, x).items():
        assert torch.equal(result, wanted[name]), name


def test_not_a_number_passes_through() -> None:
    x = torch.tensor([float("nan"), 7.0])
    graph, editor = apply(ComposeClips(), Before(), x)
    assert editor.modified
    assert torch.equal(run(graph, x).isnan(), torch.tensor([True, False]))


def test_a_second_clip_that_changes_nothing_goes_even_where_others_read_the_first() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu6(x)
        return y + 1, y.relu() * 2

    graph, editor = apply(ComposeClips(), Model(forward), x := torch.randn(3))
    assert len(editor.rewrites) == 1
    assert "relu" in ops(captured(Model(forward), x).graph_module)
    assert "relu" not in ops(graph)
    assert all(map(torch.equal, run(graph, x), run(Model(forward), x)))


# ------------------------------------------------------------------------------- refuses and keeps


def read_elsewhere(m: Any, x: Tensor, i: Tensor) -> Tensor:
    y = x.relu()
    return y + y.clamp(max=6)


KEPT: dict[str, Function] = {
    "1. a first clip that others read": read_elsewhere,
    "2. integers": lambda m, x, i: i.clamp(0, 5).clamp(1, 4),
    "2. relu of integers": lambda m, x, i: i.relu().relu(),
    "2. a clamp of integers that promotes": lambda m, x, i: i.clamp(0.5).clamp(max=3.5),
    "bounds that are tensors": lambda m, x, i: x.relu().clamp(max=m.six),
    "a bound per element": lambda m, x, i: x.clamp(max=m.bounds).relu(),
    "one clip": lambda m, x, i: functional.relu6(x),
    "clips with something between": lambda m, x, i: (x.relu() - 1).relu(),
}


def test_keeps() -> None:
    parts = Model(read_elsewhere, six=torch.tensor(6.0), bounds=torch.tensor([1.0, 2.0, 3.0]))
    model, inputs = Forms(KEPT, parts), (torch.randn(3), torch.arange(3))
    graph, editor = apply(ComposeClips(), model, *inputs)
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, *inputs).graph_module)


# --------------------------------------------------------------------------- preserves, idempotent

bounds = st.none() | st.floats(-3, 3) | st.integers(-3, 3) | st.sampled_from([inf, -inf])


@settings(deadline=None, max_examples=draws(6))
@given(
    rows=st.lists(
        st.lists(
            st.tuples(bounds, bounds).filter(lambda pair: pair != (None, None)),
            min_size=2,
            max_size=4,
        ),
        min_size=4,
        max_size=8,
    )
)
def test_composition_preserves_exactly(rows: list[list[tuple[Any, Any]]]) -> None:
    def clips(row: list[tuple[Any, Any]]) -> Function:
        def forward(m: Any, x: Tensor) -> Tensor:
            for low, high in row:
                x = x.clamp(low, high)
            return x

        return forward

    model = Forms({str(n): clips(row) for n, row in enumerate(rows)}, nn.Module())
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    graph, editor = apply(ComposeClips(), model, x)
    assert ops(graph).total() == len(rows)
    assert len(editor.rewrites) == sum(len(row) - 1 for row in rows)
    wanted = run(model, x)
    for name, result in run(graph, x).items():
        assert torch.equal(result, wanted[name])
    assert not ComposeClips().run(graph).modified


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_compose(dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 37).to(dtype)
    graph, editor = apply(ComposeClips(), Before(), x)
    assert len(editor.rewrites) == 3
    assert run(graph, x).dtype == dtype
    assert torch.equal(run(graph, x), run(Before(), x))
