"""A border that holds the bias of a layer becomes padding of the layer's input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from passfx.passes.pad_first import PadFirst
from passfx.pipeline import Plan, optimize_graph
from tests.helpers import (
    apply,
    assert_preserves,
    assert_same_structure,
    captured,
    draws,
    ops,
    randomize,
)
from tests.passes.strategies import Model

DYNAMIC = torch.export.Dim.DYNAMIC


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Assigned(nn.Module):
    """A 1×1 convolution, a norm, its bias assigned to a border, and a 3×3 convolution."""

    def __init__(self, border: int = 1, affine: bool = True, spoiled: float = 1.0) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=affine)
        self.full = nn.Conv2d(4, 6, 2 * border + 1, bias=False)
        self.border, self.spoiled = border, spoiled

    def forward(self, x: Tensor) -> Tensor:
        norm, border = self.norm, self.border
        scale = torch.rsqrt(norm.running_var + norm.eps)
        value = -norm.running_mean * scale
        if norm.affine:
            value = norm.bias + value * norm.weight
        value = (value * self.spoiled).view(1, -1, 1, 1)
        y = functional.pad(norm(self.one(x)), [border] * 4)
        y[:, :, :border] = value
        y[:, :, -border:] = value
        y[:, :, :, :border] = value
        y[:, :, :, -border:] = value
        return self.full(y)


class Scaled(nn.Module):
    """A weight that is a product of two constants."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.full = nn.Conv2d(4, 6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.ops.aten.constant_pad_nd(x, [1, 1, 1, 1], 0.0)
        return self.full(self.norm(self.one(padded)))


# ------------------------------------------------------------------------------------------- fires


def test_sides_that_are_assigned_to() -> None:
    model, x = randomize(Assigned().double()), randn(2, 3, 5, 6)
    graph, editor = apply(PadFirst(), model, x)
    assert_same_structure(graph, Expected().double(), x)
    (rewrite,) = editor.rewrites
    assert rewrite.what == "the border of batch_norm as padding of conv2d"
    assert_preserves(graph, model, [x])


def test_a_pad_with_one_value() -> None:
    one = nn.Conv2d(3, 4, 1)
    nn.init.constant_(one.bias, 0.75)
    x, full = randn(2, 3, 5, 6), nn.Conv2d(4, 6, 3)
    model = Model(
        lambda m, x: m.full(functional.pad(m.one(x), (1, 2, 0, 1), value=0.75)), one=one, full=full
    ).double()
    graph, editor = apply(PadFirst(), model, x)
    assert len(editor.rewrites) == 1
    assert ops(graph) == {"constant_pad_nd": 1, "conv2d": 2}
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("border", "affine"), [(1, True), (1, False), (2, True)])
def test_the_whole_block_is_one_convolution(border: int, affine: bool, dtype: torch.dtype) -> None:
    """The border's constants are compared before they are rounded, so float32 models collapse."""
    model = randomize(Assigned(border, affine).to(dtype))
    x = randn(1, 3, 7, 8)
    graph, runs = optimize_graph(captured(model, x.to(dtype)), Plan().passes)
    assert ops(graph) == {"conv2d": 1}
    assert not any(run.rolled_back for run in runs)
    if dtype is torch.float64:
        assert_preserves(graph, model, [x])


@pytest.mark.parametrize("axes", [(0,), (2, 3), (0, 2, 3)])
@pytest.mark.parametrize("border", [1, 2])
def test_sides_of_sizes_that_vary(axes: tuple[int, ...], border: int) -> None:
    model, x = randomize(Assigned(border).double()), randn(2, 3, 5, 6)
    shapes = (dict.fromkeys(axes, DYNAMIC),)
    graph, _ = optimize_graph(captured(model, x, dynamic_shapes=shapes), Plan().passes)
    assert ops(graph) == {"conv2d": 1}
    others = [
        randn(*(size if axis in axes else x.shape[axis] for axis, size in enumerate(sizes)))
        for sizes in ((1, 3, 3, 9), (5, 3, 12, 4), (3, 3, 7, 2))
    ]
    for other in (x, *others):
        assert_preserves(graph, model, [other])


def test_a_weight_that_is_not_folded_yet() -> None:
    """The first round sees the mask of an edge branch (ECBSR) as a product of constants."""

    model, x = randomize(Assigned().double()), randn(2, 3, 5, 6)
    scale = torch.randn(6, 1, 1, 1, dtype=torch.float64)
    nn.utils.parametrize.register_parametrization(model.full, "weight", Scaled(scale))
    graph, editor = apply(PadFirst(), model, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


# ------------------------------------------------------------------------------- refuses and keeps


def refusal(model: nn.Module, x: Tensor, **options: Any) -> str:
    _, editor = apply(PadFirst(), randomize(model), x, **options)
    assert not editor.modified
    (found,) = editor.refusals
    return found.reason


def test_refuses_1_a_border_that_is_not_the_bias() -> None:
    reason = refusal(Assigned(spoiled=1.01).double(), randn(1, 3, 5, 6))
    assert reason == "its border differs from the bias of batch_norm by 1.0e-02"


class Crossing(Assigned):
    """The same, for an image whose last row lies at a place of its own."""

    def forward(self, x: Tensor) -> Tensor:
        value = -self.norm.running_mean * torch.rsqrt(self.norm.running_var + self.norm.eps)
        y = functional.pad(self.norm(self.one(x)), [1] * 4)
        y[:, :, :1] = value.view(1, -1, 1, 1)
        y[:, :, x.shape[2] + 1 :] = value.view(1, -1, 1, 1)
        y[..., :1] = value.view(1, -1, 1, 1)
        y[..., 6:] = value.view(1, -1, 1, 1)
        return self.full(y)


def test_refuses_2_a_side_at_a_place_that_depends_on_a_dynamic_size() -> None:
    model, x = Crossing(affine=False).double(), randn(2, 3, 5, 5)
    _, editor = apply(PadFirst(), model, x)
    assert editor.modified
    reason = refusal(model, x, dynamic_shapes=({2: DYNAMIC},))
    assert reason == "its sides are assigned to where that depends on a dynamic size"


def value_pad(y: Tensor) -> Tensor:
    return functional.pad(y, (1, 1), value=0.5)


KEPT: dict[str, Callable[..., Any]] = {
    "3. nothing affine reads it": lambda m, x: value_pad(m.one(x)).relu(),
    "3. the result is read elsewhere": lambda m, x: (lambda y: (m.wide(value_pad(y)), y.relu()))(
        m.one(x)
    ),
    "no layer before": lambda m, x: m.wide(value_pad(x.relu())),
    "a layer that reads its neighbours": lambda m, x: m.wide(value_pad(m.wide(x))),
    "zeros": lambda m, x: m.wide(functional.pad(m.one(x), (1, 1))),
    "4. channels": lambda m, x: m.wide(functional.pad(m.one(x), (1, 1, 1, 1, -1, 1), value=0.5)),
    "values that are reflected": lambda m, x: m.wide(
        functional.pad(m.one(x), (1, 1, 1, 1), mode="reflect")
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    one = nn.Conv2d(3, 3, 1)
    nn.init.constant_(one.bias, 0.5)
    model = Model(KEPT[name], one=one, wide=nn.Conv2d(3, 3, 3)).double()
    _, editor = apply(PadFirst(), model, randn(1, 3, 6, 7))
    assert not editor.modified
    assert not editor.refusals


# ------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(6))
@given(
    border=st.integers(1, 2),
    affine=st.booleans(),
    sizes=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    seed=st.integers(0, 99),
)
def test_preserves(border: int, affine: bool, sizes: tuple[int, int], seed: int) -> None:
    model, x = randomize(Assigned(border, affine).double(), seed), randn(2, 3, *sizes)
    graph, editor = apply(PadFirst(), model, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    again = PadFirst().run(graph)
    assert not again.modified
    assert not again.refusals
