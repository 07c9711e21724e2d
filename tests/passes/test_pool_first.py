"""A pool comes before a map of the channels where it leaves the map less to read."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from passfx.graph.editor import Editor
from passfx.graph.text import to_text
from passfx.passes.collapse import Collapse
from passfx.passes.pool_first import PoolFirst
from tests.helpers import (
    apply,
    assert_preserves,
    assert_same_structure,
    captured,
    draws,
    ops,
    randomize,
)
from tests.passes.strategies import Model, run

Function = Callable[..., Any]
DYNAMIC = torch.export.Dim.DYNAMIC
pool = functional.avg_pool2d
global_pool = functional.adaptive_avg_pool2d


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def move(
    function: Function, *inputs: Tensor, options: Any = None, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model with random norms, the graph it becomes, and the record."""
    model = randomize(Model(function, **parts).double())
    return model, *apply(PoolFirst(), model, *inputs, **(options or {}))


# ------------------------------------------------------------------------------------------- fires


class Head(nn.Module):
    """The end of a ConvMixer (Trockman and Kolter, 2022), and what passfx makes of it."""

    def __init__(self, pools_first: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8) if pools_first else nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)
        self.pools_first = pools_first

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(x)
        if self.pools_first:
            return self.linear(self.norm(global_pool(x, 1).flatten(1)))
        return self.linear(global_pool(self.norm(x), 1).flatten(1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_norm_of_a_head_reaches_its_linear_layer(dynamic: bool) -> None:
    x = randn(3, 8, 7, 6)
    options = {"dynamic_shapes": {"x": {0: DYNAMIC, 3: DYNAMIC}}} if dynamic else {}
    model = randomize(Head(False).double())
    graph, editor = apply(PoolFirst(), model, x, **options)
    expected = captured(Head(True).double(), x, **options).graph_module
    assert to_text(graph) == to_text(expected)
    (rewrite,) = editor.rewrites
    assert rewrite.removed == ("batch_norm", "adaptive_avg_pool2d", "view")
    assert rewrite.what.startswith("adaptive_avg_pool2d before batch_norm: ")
    assert not PoolFirst().run(graph).modified
    assert Collapse().run(graph).modified
    assert "batch_norm" not in ops(graph)
    assert_preserves(graph, model, [x])
    if dynamic:
        assert_preserves(graph, model, [randn(5, 8, 7, 9)])


def head(m: Any, x: Tensor) -> Tensor:
    return global_pool(x, 1).flatten(1)


# A map of [2, 4, 9, 7], a pool, and the map as it is after the pool.
FIRES: dict[str, tuple[Function, Function, Function]] = {
    "a norm, windows": (lambda m, x: m.norm(x), lambda m, x: pool(x, 2), lambda m, x: m.norm(x)),
    "a norm, a mean": (
        lambda m, x: m.norm(x),
        lambda m, x: x.mean((2, 3)),
        lambda m, x: m.norm1(x),
    ),
    "a norm, a mean of rows": (
        lambda m, x: m.norm(x),
        lambda m, x: x.mean(2),
        lambda m, x: m.norm1(x),
    ),
    "a norm, fewer pixels": (
        lambda m, x: m.norm(x),
        lambda m, x: functional.interpolate(x, size=(4, 5), mode="bilinear"),
        lambda m, x: m.norm(x),
    ),
    "a scale, a mean": (
        lambda m, x: x * m.gamma,
        lambda m, x: x.mean((-2, -1)),
        lambda m, x: x * m.flat,
    ),
    "a scale, a mean of rows": (
        lambda m, x: x * m.gamma,
        lambda m, x: x.mean(3),
        lambda m, x: x * m.column,
    ),
    "a scale, a mean that keeps": (
        lambda m, x: x * m.gamma,
        lambda m, x: x.mean((2, 3), keepdim=True),
        lambda m, x: x * m.gamma,
    ),
    "a divisor, a head": (lambda m, x: x / m.gamma, head, lambda m, x: x / m.flat),
    "a shift, a head": (lambda m, x: m.gamma + x, head, lambda m, x: m.flat + x),
    "a difference, a head": (lambda m, x: m.gamma - x, head, lambda m, x: m.flat - x),
    "a number, a head": (lambda m, x: 1 - x, head, lambda m, x: 1 - x),
    "one element, a head": (lambda m, x: x * m.one, head, lambda m, x: x * m.flat_one),
    "a scalar, a head": (lambda m, x: x * m.scalar, head, lambda m, x: x * m.flat_one),
    "a scale, zeros counted": (
        lambda m, x: x * m.gamma,
        lambda m, x: pool(x, 3, 2, 1),
        lambda m, x: x * m.gamma,
    ),
    "a shift, windows over the end": (
        lambda m, x: x + m.gamma,
        lambda m, x: pool(x, 4, ceil_mode=True),
        lambda m, x: x + m.gamma,
    ),
    "a shift, zeros not counted": (
        lambda m, x: x + m.gamma,
        lambda m, x: pool(x, 3, 2, 1, count_include_pad=False),
        lambda m, x: x + m.gamma,
    ),
}


def parts() -> dict[str, Any]:
    return {
        "norm": nn.BatchNorm2d(4),
        "norm1": nn.BatchNorm1d(4),
        "gamma": nn.Parameter(torch.rand(4, 1, 1) + 1),
        "column": nn.Parameter(torch.rand(4, 1) + 1),
        "flat": nn.Parameter(torch.rand(4) + 1),
        "columns": torch.rand(7),
        "one": torch.full((1, 1, 1), 3.0),
        "flat_one": torch.tensor([3.0]),
        "scalar": torch.tensor(3.0),
        "conv": nn.Conv2d(4, 4, 3, padding=1),
        "linear": nn.Linear(4, 4),
    }


@pytest.mark.parametrize("name", FIRES)
def test_every_map_moves_after_every_pool(name: str) -> None:
    affine, pooled, after = FIRES[name]
    x = randn(2, 4, 9, 7)
    model, graph, editor = move(lambda m, x: pooled(m, affine(m, x)), x, **parts())
    expected = Model(lambda m, x: after(m, pooled(m, x)), **parts()).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    assert not PoolFirst().run(graph).modified


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: m.norm(x).mean(2), (2, 4, 9)),
        (lambda m, x: functional.avg_pool1d(m.norm(x), 2), (2, 4, 9)),
        (lambda m, x: functional.adaptive_avg_pool3d(m.norm(x), 1).flatten(1), (2, 4, 3, 4, 5)),
    ],
)
def test_signals_and_volumes(function: Function, shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(4) if len(shape) == 3 else nn.BatchNorm3d(4)
    model, graph, editor = move(function, x := randn(*shape), norm=norm)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_map_whose_layer_is_read_elsewhere_moves() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y).mean((2, 3)) + y.relu().amax((2, 3))

    model, graph, editor = move(forward, x := randn(2, 4, 6, 6), **parts())
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_dynamic_sizes() -> None:
    model, graph, editor = move(
        lambda m, x: functional.interpolate(m.norm(x), scale_factor=0.5, mode="bilinear"),
        x := randn(2, 4, 9, 8),
        options={"dynamic_shapes": {"inputs": ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)}},
        **parts(),
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    assert_preserves(graph, model, [randn(3, 4, 14, 11)])


# ------------------------------------------------------------------------------- refuses and keeps


def read_twice(m: Any, x: Tensor) -> Any:
    y = m.norm(x)
    return y.mean((2, 3)), y.relu()


LEAK = "a shift would not pass through: the weights of avg_pool2d do not add up to 1"
REFUSED: dict[str, tuple[Function, str]] = {
    "2. a map that is read twice": (read_twice, "^batch_norm is also read by relu$"),
    "3. a norm before counted zeros": (lambda m, x: pool(m.norm(x), 3, 2, 1), LEAK),
    "3. a shift before another divisor": (
        lambda m, x: pool(x + m.gamma, 2, divisor_override=3),
        LEAK,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    function, reason = REFUSED[name]
    model, graph, editor = move(function, x := randn(2, 4, 9, 7), **parts())
    assert not editor.modified
    (refusal,) = editor.refusals
    assert re.search(reason, refusal.reason)
    assert to_text(graph) == to_text(captured(model, x).graph_module)


KEPT: dict[str, Function] = {
    "1. a norm of a convolution": lambda m, x: m.norm(m.conv(x)).mean((2, 3)),
    "1. a norm and a scale of a convolution": lambda m, x: (m.norm(m.conv(x)) * m.gamma).mean(
        (2, 3)
    ),
    "4. a pool to the same size": lambda m, x: pool(m.norm(x), 3, 1, 1, count_include_pad=False),
    "4. more pixels": lambda m, x: functional.interpolate(m.norm(x), scale_factor=2),
    "4. a mean over the channels": lambda m, x: m.norm(x).mean((1, 2)),
    "4. a mean over everything": lambda m, x: m.norm(x).mean(),
    "a maximum": lambda m, x: m.norm(x).amax((2, 3)),
    "a scale of the columns": lambda m, x: (x * m.columns).mean((2, 3)),
    "a layer": lambda m, x: m.conv(x).mean((2, 3)),
    "a sum of two": lambda m, x: (x + x.relu()).mean((2, 3)),
    "a norm on the batch": lambda m, x: functional.batch_norm(x, None, None, training=True).mean(
        (2, 3)
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    model, graph, editor = move(KEPT[name], x := randn(2, 4, 9, 7), **parts())
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_half_precision_moves_in_its_own_dtype() -> None:
    model = Model(lambda m, x: (x * m.gamma).mean((2, 3)), gamma=torch.rand(4, 1, 1)).bfloat16()
    graph, editor = apply(PoolFirst(), model, x := torch.randn(2, 4, 8, 8).bfloat16())
    assert editor.modified
    assert run(graph, x)[0].dtype == torch.bfloat16


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(14))
@given(data=st.data())
def test_every_move_is_exact(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    def flag() -> bool:
        return data.draw(st.booleans())

    torch.manual_seed(draw(0, 1000))
    kernel = (draw(1, 4), draw(1, 4))
    options: dict[str, Any] = {
        "stride": (draw(1, 3), draw(1, 3)),
        "padding": (draw(0, kernel[0] // 2), draw(0, kernel[1] // 2)),
        "ceil_mode": flag(),
        "count_include_pad": flag(),
        "divisor_override": draw(1, 5) if draw(0, 3) == 0 else None,
    }
    channels, kind, affine = draw(1, 5), draw(0, 3), flag()

    def function(m: Any, x: Tensor) -> Tensor:
        x = m.norm(x) if affine else x * m.gamma
        if kind == 0:
            return global_pool(x, 1).flatten(1)
        if kind == 1:
            return x.mean((2, 3))
        return pool(x, kernel, **options)

    x = randn(draw(1, 2), channels, draw(4, 12), draw(4, 12))
    norm = nn.BatchNorm2d(channels, affine=flag(), eps=0.1)
    gamma = torch.randn(channels, 1, 1)
    model, graph, editor = move(function, x, norm=norm, gamma=gamma)
    assert not any("undone" in refusal.reason for refusal in editor.refusals)
    assert_preserves(graph, model, [x])
    assert not PoolFirst().run(graph).modified
