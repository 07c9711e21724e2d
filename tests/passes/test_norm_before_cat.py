"""The norm of a concatenation moves into the layers of its parts."""

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
from passfx.passes.norm_before_cat import NormBeforeCat
from tests.helpers import apply, assert_preserves, captured, draws, ops, randomize
from tests.passes.strategies import Model, run

Function = Callable[..., Any]
DYNAMIC = torch.export.Dim.DYNAMIC


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def move(
    function: Function, *inputs: Tensor, options: Any = None, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model with random norms, the graph it becomes, and the record."""
    model = randomize(Model(function, **parts).double())
    return model, *apply(NormBeforeCat(), model, *inputs, **(options or {}))


# ------------------------------------------------------------------------------------------- fires


class Ghost(nn.Module):
    """Two convolutions side by side and a norm of both, and what passfx makes of it."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.left = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.right = nn.Conv2d(4, 5, 1)
        self.norm = nn.BatchNorm2d(8)
        self.norm_left, self.norm_right = nn.BatchNorm2d(3), nn.BatchNorm2d(5)
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x.relu())
        if self.norm_first:
            return cat(self.norm_left(left), self.norm_right(right)).relu()
        return self.norm(cat(left, right)).relu()


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_norm_moves_into_its_convolutions(dynamic: bool) -> None:
    x = randn(2, 4, 7, 6)
    options = {"dynamic_shapes": {"x": {0: DYNAMIC, 2: DYNAMIC}}} if dynamic else {}
    model = randomize(Ghost(False).double())
    graph, editor = apply(NormBeforeCat(), model, x, **options)
    expected = captured(Ghost(True).double(), x, **options).graph_module
    assert to_text(graph) == to_text(expected)
    (rewrite,) = editor.rewrites
    assert rewrite.removed == ("cat", "batch_norm")
    assert rewrite.what.startswith("2 of the 2 parts take batch_norm in: 0.0 µs instead of ")
    assert not NormBeforeCat().run(graph).modified
    assert Collapse().run(graph).modified
    assert "batch_norm" not in ops(graph)
    assert_preserves(graph, model, [x])
    if dynamic:
        assert_preserves(graph, model, [randn(3, 4, 9, 6)])


def parts() -> dict[str, Any]:
    return {
        "a": nn.Conv2d(4, 3, 3, padding=1),
        "b": nn.Conv2d(4, 5, 1, bias=False),
        "up": nn.ConvTranspose2d(4, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "after": nn.BatchNorm2d(8),
        "plain": nn.BatchNorm2d(8, affine=False),
        "gamma": nn.Parameter(torch.rand(8, 1, 1) + 1),
        "columns": torch.rand(6),
        "one": torch.full((1, 1, 1), 2.0),
        "next": nn.Conv2d(8, 4, 1),
        "padded": nn.Conv2d(8, 4, 3, padding=1),
    }


# Maps of [2, 8, 7, 6], and how many parts they become.
MAPS: dict[str, Function] = {
    "a norm": lambda m, x: m.after(x),
    "a norm without parameters": lambda m, x: m.plain(x),
    "a scale": lambda m, x: x * m.gamma,
    "a divisor": lambda m, x: x / m.gamma,
    "a shift": lambda m, x: m.gamma + x,
    "a difference": lambda m, x: m.gamma - x,
    "a number": lambda m, x: 1 - x,
    "one element": lambda m, x: x * m.one,
}


@pytest.mark.parametrize("name", MAPS)
def test_every_map_moves(name: str) -> None:
    x = randn(2, 4, 7, 6)
    function = MAPS[name]
    model, graph, editor = move(lambda m, x: function(m, cat(m.a(x), m.b(x))), x, **parts())
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    Collapse().run(graph)
    assert ops(graph).keys() <= {"conv2d", "cat"}
    assert_preserves(graph, model, [x])


PARTS: dict[str, Function] = {
    "a transposed convolution": lambda m, x: cat(m.up(x), m.up(x.relu())),
    "a norm": lambda m, x: cat(m.norm(x), m.norm(x.relu())),
    "a pool": lambda m, x: cat(
        functional.avg_pool2d(x, 3, 1, 1), functional.avg_pool2d(x.relu(), 3, 1, 1)
    ),
    "a scale": lambda m, x: cat(x * 2, x.relu() + 1),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_that_takes_a_map_in(name: str) -> None:
    function = PARTS[name]
    model, graph, editor = move(
        lambda m, x: m.after(function(m, x)), x := randn(2, 4, 7, 6), **parts()
    )
    assert editor.rewrites[0].what.startswith("2 of the 2 parts take batch_norm")
    assert_preserves(graph, model, [x])


def test_linear_layers() -> None:
    model, graph, editor = move(
        lambda m, x: m.norm(cat(m.a(x), m.b(x))).relu(),
        x := randn(3, 6),
        a=nn.Linear(6, 5),
        b=nn.Linear(6, 3),
        norm=nn.BatchNorm1d(8),
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_part_may_keep_a_map_of_its_own() -> None:
    x = randn(2, 4, 40, 40)
    model, graph, editor = move(lambda m, x: m.after(cat(m.up(x), x.relu())).relu(), x, **parts())
    (rewrite,) = editor.rewrites
    assert rewrite.what.startswith("1 of the 2 parts take batch_norm in: ")
    assert_preserves(graph, model, [x])
    assert not NormBeforeCat().run(graph).modified


def test_a_shift_moves_where_padding_keeps_it_from_the_next_layer() -> None:
    x = randn(2, 4, 7, 6)
    model, graph, editor = move(lambda m, x: m.padded(m.after(cat(m.a(x), m.b(x)))), x, **parts())
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_shared_norm_keeps_its_constants() -> None:
    x = randn(2, 4, 7, 6)
    model, graph, editor = move(
        lambda m, x: m.after(cat(m.a(x), m.b(x))).relu() + m.after(x.repeat(1, 2, 1, 1)),
        x,
        **parts(),
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


# ------------------------------------------------------------------------------- refuses and keeps


def read_twice(m: Any, x: Tensor) -> Any:
    y = cat(m.a(x), m.b(x))
    return m.after(y), y.sigmoid()


REFUSED: dict[str, tuple[Function, str]] = {
    "1. slower": (
        lambda m, x: m.wide(cat(m.up(x), *(x.exp() * x.relu() for _ in range(3)))).relu(),
        r"^only 1 of the 4 parts take batch_norm in, the others would need maps of their own: "
        r"\d+\.\d µs instead of \d+\.\d µs$",
    ),
    "2. a concatenation that is read twice": (read_twice, "^cat is also read by sigmoid$"),
}


def test_refuses_1_more_maps_than_before_though_they_read_less() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(cat(m.layer(x), x.exp(), x.sigmoid())).relu()

    options = {"layer": nn.Conv2d(4, 24, 3, padding=1), "norm": nn.BatchNorm2d(32)}
    _, _, editor = move(forward, randn(1, 4, 64, 64), **options)
    assert not editor.modified
    (refusal,) = editor.refusals
    assert refusal.reason.startswith("only 1 of the 3 parts take batch_norm in, the others would")


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    function, reason = REFUSED[name]
    options = parts() | {"wide": nn.BatchNorm2d(16)}
    model, graph, editor = move(function, x := randn(2, 4, 7, 6), **options)
    assert not editor.modified
    (refusal,) = editor.refusals
    assert re.search(reason, refusal.reason)
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def part_read_elsewhere(m: Any, x: Tensor) -> Any:
    y, z = m.a(x), m.b(x)
    return m.after(cat(y, z)).relu(), y.relu(), z.relu()


KEPT: dict[str, Function] = {
    "3. a layer after": lambda m, x: m.next(m.after(cat(m.a(x), m.b(x)))),
    "3. a scale before a padded layer": lambda m, x: m.padded(cat(m.a(x), m.b(x)) * m.gamma),
    "4. along the rows": lambda m, x: m.norm(torch.cat((m.up(x), m.up(x)), 2)),
    "4. a part twice": lambda m, x: m.after(cat(y := m.up(x), y)),
    "no part takes it in": lambda m, x: m.after(cat(x.relu(), x.exp())),
    "parts that are read elsewhere": part_read_elsewhere,
    "a norm on the batch": lambda m, x: functional.batch_norm(
        cat(m.a(x), m.b(x)), None, None, training=True
    ),
    "a clip": lambda m, x: cat(m.a(x), m.b(x)).relu(),
    "a map of the columns": lambda m, x: cat(m.a(x), m.b(x)) * m.columns,
    "a sum of two": lambda m, x: cat(m.a(x), m.b(x)) + x.repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    model, graph, editor = move(KEPT[name], x := randn(2, 4, 7, 6), **parts())
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_keeps_parts_of_dynamic_channels() -> None:
    _, _, editor = move(
        lambda m, x, y: cat(x * 3, y * 2) * 5,
        randn(2, 4, 7),
        randn(2, 5, 7),
        options={"dynamic_shapes": {"inputs": ({}, {1: DYNAMIC})}},
    )
    assert not editor.modified


def test_keeps_parts_of_other_types() -> None:
    model = Model(lambda m, x: m.norm(cat(m.conv(x), x.half().relu())), conv=nn.Conv2d(4, 4, 1))
    model.norm = nn.BatchNorm2d(8)
    _, editor = apply(NormBeforeCat(), model, torch.randn(2, 4, 5, 5))
    assert not editor.modified


def test_half_precision_moves_in_its_own_dtype() -> None:
    parts = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 3, padding=1)}
    model = Model(lambda m, x: cat(m.a(x), m.b(x)) * m.gamma, gamma=torch.rand(8, 1, 1), **parts)
    x = torch.randn(2, 4, 8, 8).bfloat16()
    graph, editor = apply(NormBeforeCat(), model.bfloat16(), x)
    assert editor.modified
    assert run(graph, x)[0].dtype == torch.bfloat16


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(10))
@given(data=st.data())
def test_every_move_is_exact(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    torch.manual_seed(draw(0, 1000))
    counts = [draw(1, 5) for _ in range(draw(1, 4))]
    keeps = [draw(0, 3) == 0 for _ in counts]
    convs = nn.ModuleList(nn.Conv2d(3, count, 1, bias=bool(draw(0, 1))) for count in counts)
    affine = data.draw(st.booleans())

    def function(m: Any, x: Tensor) -> Tensor:
        y = cat(*(c(x).relu() if keep else c(x) for c, keep in zip(m.convs, keeps, strict=True)))
        return m.norm(y).relu()

    norm = nn.BatchNorm2d(sum(counts), affine=affine, eps=0.1)
    x = randn(draw(1, 2), 3, draw(1, 40), draw(1, 40))
    model, graph, editor = move(function, x, convs=convs, norm=norm)
    assert editor.modified or any(keeps)
    assert not any("undone" in refusal.reason for refusal in editor.refusals)
    assert_preserves(graph, model, [x])
    assert not NormBeforeCat().run(graph).modified
