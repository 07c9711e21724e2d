"""Interpolation and 1×1 convolutions change places where that is predicted faster."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from passfx.analysis.cost import graph_cost, node_seconds
from passfx.graph.editor import Editor
from passfx.graph.query import operators
from passfx.graph.text import to_text
from passfx.passes.move_upsamples import MoveUpsamples
from passfx.target import CPU
from tests.helpers import apply, assert_preserves, assert_same_structure, captured, randomize
from tests.passes.strategies import Model

Function = Callable[..., Any]
DYNAMIC = torch.export.Dim.DYNAMIC
upsample = functional.interpolate


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def move(
    function: Function, *inputs: Tensor, options: Any = None, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model with random norms, the graph it becomes, and the record."""
    model = randomize(Model(function, **parts).double())
    return model, *apply(MoveUpsamples(), model, *inputs, **(options or {}))


# ------------------------------------------------------------------------------------------- fires


class Head(nn.Module):
    """The head of a segmentation model: classes of features, at the size of the image."""

    def __init__(self, upsamples_first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 19, 1)
        self.norm = nn.BatchNorm2d(19)
        self.upsamples_first = upsamples_first

    def forward(self, x: Tensor) -> Tensor:
        larger = partial(upsample, scale_factor=2, mode="bilinear")
        if self.upsamples_first:
            return self.norm(self.conv(larger(x))).relu()
        return larger(self.norm(self.conv(x))).relu()


def test_classes_come_before_the_size_of_the_image() -> None:
    x = randn(2, 32, 7, 9)
    model = randomize(Head(True).double())
    graph, editor = apply(MoveUpsamples(), model, x)
    assert_same_structure(graph, Head(False).double(), x)
    assert_preserves(graph, model, [x])
    (rewrite,) = editor.rewrites
    assert rewrite.removed == ("upsample_bilinear2d", "conv2d", "batch_norm")
    assert graph_cost(graph).macs * 4 == graph_cost(captured(model, x).graph_module).macs
    seconds = sum(node_seconds(node, CPU.profile) for node in operators(graph)[:-1])
    assert f": {seconds * 1e6:.1f} µs instead of" in rewrite.what
    assert not MoveUpsamples().run(graph).modified


# Of [2, 6, 5, 7], or of another number of dimensions.
FORMS: dict[str, Function] = {
    "nearest": lambda x: upsample(x, scale_factor=2),
    "nearest to a size": lambda x: upsample(x, size=(11, 8)),
    "nearest-exact": lambda x: upsample(x, size=(11, 8), mode="nearest-exact"),
    "bilinear": lambda x: upsample(x, scale_factor=1.7, mode="bilinear"),
    "bilinear, corners": lambda x: upsample(x, size=(9, 16), mode="bilinear", align_corners=True),
    "bicubic": lambda x: upsample(x, scale_factor=2, mode="bicubic"),
    "bicubic, corners": lambda x: upsample(x, size=(9, 16), mode="bicubic", align_corners=True),
    "bilinear, antialiased": lambda x: upsample(x, size=(9, 16), mode="bilinear", antialias=True),
    "bicubic, antialiased": lambda x: upsample(x, size=(9, 16), mode="bicubic", antialias=True),
    "recomputed scale": lambda x: upsample(
        x, scale_factor=1.9, mode="bilinear", recompute_scale_factor=True
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_interpolation_of_images(name: str) -> None:
    function, x = FORMS[name], randn(2, 6, 5, 7)
    model, graph, editor = move(lambda m, x: m.conv(function(x)), x, conv=nn.Conv2d(6, 6, 1))
    expected = Model(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(6, 6, 1)).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear"])
def test_signals(mode: str) -> None:
    x, conv = randn(2, 6, 9), nn.Conv1d(6, 4, 1, groups=2)
    model, graph, editor = move(
        lambda m, x: m.conv(upsample(x, scale_factor=2, mode=mode)), x, conv=conv
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear"])
def test_volumes(mode: str) -> None:
    x, conv = randn(1, 4, 3, 4, 5), nn.Conv3d(4, 4, 1)
    model, graph, editor = move(
        lambda m, x: m.conv(upsample(x, size=(5, 7, 8), mode=mode)), x, conv=conv
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_smaller_size_comes_before_the_convolution() -> None:
    x = randn(2, 8, 14, 12)
    half = partial(upsample, scale_factor=0.5, mode="bilinear")
    parts = {"conv": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8)}
    model, graph, editor = move(lambda m, x: half(m.norm(m.conv(x))), x, **parts)
    expected = Model(lambda m, x: m.norm(m.conv(half(x))), **parts).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    assert not MoveUpsamples().run(graph).modified


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_dynamic_sizes(mode: str) -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        z = m.conv(upsample(x.relu(), size=y.shape[2:], mode=mode))
        return z + y + m.conv(upsample(x, scale_factor=2, mode=mode)).mean()

    x, y = randn(2, 8, 6, 7), randn(2, 4, 12, 15)
    model, graph, editor = move(
        forward,
        x,
        y,
        options={
            "dynamic_shapes": {
                "inputs": ({0: DYNAMIC, 2: DYNAMIC}, {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC})
            }
        },
        conv=nn.Conv2d(8, 4, 1),
    )
    assert len(editor.rewrites) == 2
    assert_preserves(graph, model, [x, y])
    assert_preserves(graph, model, [randn(3, 8, 9, 7), randn(3, 4, 17, 11)])


# ------------------------------------------------------------------------------- refuses and keeps


def parts() -> dict[str, Any]:
    return {
        "same": nn.Conv2d(16, 16, 1),
        "widest": nn.Conv2d(16, 256, 1),
        "narrow": nn.Conv2d(16, 1, 1),
        "large": nn.Conv2d(16, 16, 3, padding=1),
        "strided": nn.Conv2d(16, 16, 1, stride=2),
    }


def larger(x: Tensor) -> Tensor:
    return upsample(x, scale_factor=2)


def read_twice(m: Any, x: Tensor) -> Any:
    y = larger(x)
    return m.same(y), y.relu()


REFUSED: dict[str, tuple[Function, str]] = {
    "1. slower": (
        lambda m, x: upsample(m.narrow(x), scale_factor=0.9),
        "_nearest2d before conv2d would take .* MACs and .* µs, .* µs as is",
    ),
    "2. an interpolation that is read twice": (read_twice, "_nearest2d is also read by relu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    function, reason = REFUSED[name]
    model, graph, editor = move(function, x := randn(1, 16, 20, 20), **parts())
    assert not editor.modified
    (refusal,) = editor.refusals
    assert re.search(reason, refusal.reason)
    assert to_text(graph) == to_text(captured(model, x).graph_module)


KEPT: dict[str, Function] = {
    "1. the order it should have": lambda m, x: larger(m.same(x)),
    "1. one size": lambda m, x: m.same(upsample(x, scale_factor=1.0, mode="bilinear")),
    "3. a stride": lambda m, x: m.strided(larger(x)),
    "3. a larger kernel": lambda m, x: m.large(larger(x)),
    "3. computed weights": lambda m, x: functional.conv2d(larger(x), m.same.weight + x.mean()),
    "a pool": lambda m, x: functional.avg_pool2d(m.same(x), 2),
    "a shuffle": lambda m, x: functional.pixel_shuffle(m.same(x), 2),
    "something between": lambda m, x: m.same(larger(x).relu()),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    model, graph, editor = move(KEPT[name], x := randn(2, 16, 9, 9), **parts())
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_every_move_is_exact(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    torch.manual_seed(draw(0, 1000))
    mode = data.draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]))
    options: dict[str, Any] = {"size": (draw(1, 15), draw(1, 15)), "mode": mode}
    if mode.startswith("bi"):
        options |= {"align_corners": data.draw(st.booleans())}
        options |= {"antialias": data.draw(st.booleans())}
    groups = draw(1, 2)
    channels, out = groups * draw(1, 20), groups * draw(1, 20)
    first, normed = data.draw(st.booleans()), data.draw(st.booleans())

    def function(m: Any, x: Tensor) -> Tensor:
        x = m.conv(upsample(x, **options) if first else x)
        x = m.norm(x) if normed else x
        return x if first else upsample(x, **options)

    x = randn(draw(1, 2), channels, draw(1, 10), draw(1, 10))
    conv = nn.Conv2d(channels, out, 1, groups=groups, bias=data.draw(st.booleans()))
    model, graph, editor = move(function, x, conv=conv, norm=nn.BatchNorm2d(out))
    assert not any("undone" in refusal.reason for refusal in editor.refusals)
    assert_preserves(graph, model, [x])
    assert not MoveUpsamples().run(graph).modified
