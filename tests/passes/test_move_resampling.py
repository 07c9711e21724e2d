"""Pools or interpolation and 1×1 convolutions change places where that is exact and faster."""

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
from passfx.graph.evaluate import run_flat
from passfx.graph.query import operators
from passfx.graph.text import to_text
from passfx.passes.collapse import Collapse
from passfx.passes.move_resampling import MoveResampling
from passfx.target import CPU
from passfx.verify.error import relative_error
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
upsample = functional.interpolate


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def move(
    function: Function, *inputs: Tensor, options: Any = None, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model with random norms, the graph it becomes, and the record."""
    model = randomize(Model(function, **parts).double())
    return model, *apply(MoveResampling(), model, *inputs, **(options or {}))


# ------------------------------------------------------------------------------------------- fires


class Transition(nn.Module):
    """The transition of DenseNet (Huang et al., 2017), and what passfx makes of it."""

    def __init__(self, pools_first: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(64)
        self.conv = nn.Conv2d(64, 32, 1, bias=False)
        self.pools_first = pools_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).relu()
        return self.conv(pool(x, 2)) if self.pools_first else pool(self.conv(x), 2)


def test_the_transition_of_densenet_pools_first() -> None:
    x = randn(2, 64, 14, 14)
    model = randomize(Transition(False).double())
    graph, editor = apply(MoveResampling(), model, x)
    assert_same_structure(graph, Transition(True).double(), x)
    assert_preserves(graph, model, [x])
    (rewrite,) = editor.rewrites
    assert rewrite.what.startswith("avg_pool2d before conv2d: ")
    before = graph_cost(captured(model, x).graph_module).macs
    assert graph_cost(graph).macs * 4 == before


def test_the_macs_of_dense_blocks_fall() -> None:
    def dense(m: Any, x: Tensor) -> Tensor:
        for block, transition in zip(m.blocks, m.transitions, strict=True):
            for layer in block:
                x = torch.cat([x, layer(x)], 1)
            x = transition(x)
        return m.head(functional.adaptive_avg_pool2d(x.relu(), 1).flatten(1))

    def layer(channels: int) -> nn.Module:
        norm = nn.BatchNorm2d(channels)
        return nn.Sequential(norm, nn.ReLU(), nn.Conv2d(channels, 16, 3, padding=1, bias=False))

    parts = {
        "blocks": nn.ModuleList(
            nn.ModuleList(layer(start + 16 * n) for n in range(2)) for start in (32, 32)
        ),
        "transitions": nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 1, bias=False), nn.AvgPool2d(2)
            )
            for _ in range(2)
        ),
        "head": nn.Linear(32, 10),
    }
    x = randn(1, 32, 28, 28)
    model, graph, editor = move(dense, x, **parts)
    assert len(editor.rewrites) == 2
    saved = graph_cost(captured(model, x).graph_module).macs - graph_cost(graph).macs
    assert saved == 64 * 32 * (28 * 28 * 3 // 4 + 14 * 14 * 3 // 4)
    assert_preserves(graph, model, [x])
    assert not MoveResampling().run(graph).modified


class Branch(nn.Module):
    """The pool branch of Inception (Szegedy et al., 2015): 192 channels to 32."""

    def __init__(self, pools_first: bool, counts: bool) -> None:
        super().__init__()
        padding = int(counts and not pools_first)
        self.conv = nn.Conv2d(192, 32, 1, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.pools_first, self.counts = pools_first, counts

    def pool(self, x: Tensor) -> Tensor:
        return pool(x, 3, 1, 1, count_include_pad=self.counts)

    def forward(self, x: Tensor) -> Tensor:
        if self.pools_first:
            return self.norm(self.conv(self.pool(x))).relu()
        if self.counts:
            return pool(self.norm(self.conv(x)), 3, 1).relu()
        return self.pool(self.norm(self.conv(x))).relu()


@pytest.mark.parametrize("counts", [True, False])
def test_the_pool_branch_of_inception_pools_last(counts: bool) -> None:
    x = randn(1, 192, 33, 35)
    model = randomize(Branch(True, counts).double())
    graph, editor = apply(MoveResampling(), model, x)
    assert_same_structure(graph, Branch(False, counts).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    assert not MoveResampling().run(graph).modified


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Conv1d(64, 8, 1), partial(functional.avg_pool1d, kernel_size=4, stride=2, padding=2)),
        (nn.Conv2d(64, 8, 1), partial(pool, kernel_size=(3, 5), stride=(2, 1), padding=(0, 2))),
        (nn.Conv3d(64, 8, 1), partial(functional.avg_pool3d, kernel_size=2, stride=1, padding=1)),
        (nn.Conv2d(64, 8, 1, padding="same"), partial(pool, kernel_size=3, stride=1, padding=1)),
    ],
)
def test_a_biased_layer_pads_in_place_of_a_pool_that_counts_zeros(
    layer: Any, function: Function
) -> None:
    x = randn(2, 64, *(9, 11, 6)[: layer.weight.ndim - 2])
    model, graph, editor = move(lambda m, x: m.conv(function(x)), x, conv=layer)
    assert len(editor.rewrites) == 1
    assert [node.target.overloadpacket.__name__[:4] for node in operators(graph)] == [
        "conv",
        "avg_",
    ]
    assert_preserves(graph, model, [x])
    assert not MoveResampling().run(graph).modified


@pytest.mark.parametrize("options", [{"divisor_override": 7}, {"ceil_mode": True}])
def test_a_bias_is_added_after_a_pool_of_another_divisor(options: Any) -> None:
    x = randn(2, 64, 9, 11)
    conv = nn.Conv2d(64, 8, 1)
    model, graph, editor = move(lambda m, x: m.conv(pool(x, 3, 1, 1, **options)), x, conv=conv)
    expected = Model(
        lambda m, x: pool(m.conv(x), 3, 1, 1, **options) + m.shift,
        conv=nn.Conv2d(64, 8, 1, bias=False),
        shift=torch.randn(1, 8, 1, 1),
    )
    assert_same_structure(graph, expected.double(), x)
    assert torch.equal(graph.get_buffer("conv.shift").flatten(), conv.bias.detach())
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_bias_of_zero_is_none() -> None:
    conv = nn.Conv2d(16, 8, 1)
    nn.init.zeros_(conv.bias)
    x = randn(1, 16, 8, 8)
    model, graph, editor = move(lambda m, x: pool(m.conv(x), 2, 2, 1), x, conv=conv)
    assert editor.modified
    assert_preserves(graph, model, [x])


def test_a_mean_that_drops_the_positions_leaves_a_linear_layer() -> None:
    x = randn(3, 8, 7, 5)
    parts = {"conv": nn.Conv2d(8, 12, 1), "norm": nn.BatchNorm2d(12)}
    model, graph, editor = move(lambda m, x: m.norm(m.conv(x)).mean((2, 3)), x, **parts)
    expected = Model(
        lambda m, x: m.norm(m.conv(x.mean((2, 3)))), conv=nn.Linear(8, 12), norm=nn.BatchNorm1d(12)
    )
    assert_same_structure(graph, expected.double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


# Pools after conv(8 → 8) of [2, 8, 9, 7], which leave fewer positions.
SHRINK: dict[str, Function] = {
    "a window": lambda x: pool(x, 2),
    "overlapping windows": lambda x: pool(x, 3, 2),
    "one axis": lambda x: pool(x, (1, 2)),
    "windows that hang over the end": lambda x: pool(x, (2, 3), ceil_mode=True),
    "padding that is not counted": lambda x: pool(x, 3, 2, 1, count_include_pad=False),
    "padding that is not counted, over the end": lambda x: pool(
        x, 4, 3, 1, ceil_mode=True, count_include_pad=False
    ),
    "no padding to count": lambda x: pool(x, 3, 3, 0, count_include_pad=True),
    "adaptive to 1": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "adaptive to other sizes": lambda x: functional.adaptive_avg_pool2d(x, (4, 3)),
    "a mean": lambda x: x.mean((2, 3), keepdim=True),
    "a mean by negative axes": lambda x: x.mean((-1, -2), keepdim=True),
    "a mean of rows": lambda x: x.mean(-1, keepdim=True),
    "area interpolation": lambda x: functional.interpolate(x, size=(3, 3), mode="area"),
}


@pytest.mark.parametrize("name", SHRINK)
def test_every_average_moves_before_a_biased_convolution(name: str) -> None:
    function, x = SHRINK[name], randn(2, 8, 9, 7)
    parts = {"conv": nn.Conv2d(8, 8, 1)}
    model, graph, editor = move(lambda m, x: function(m.conv(x)), x, **parts)
    expected = Model(lambda m, x: m.conv(function(x)), conv=nn.Conv2d(8, 8, 1)).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize(
    ("conv", "function", "shape"),
    [
        (nn.Conv1d(6, 6, 1), lambda x: functional.avg_pool1d(x, 3, 2), (2, 6, 11)),
        (nn.Conv1d(6, 4, 1), lambda x: functional.adaptive_avg_pool1d(x, 2), (2, 6, 11)),
        (nn.Conv1d(6, 6, 1), lambda x: x.mean(2), (2, 6, 11)),
        (nn.Conv3d(4, 4, 1), lambda x: functional.avg_pool3d(x, 2, 2, 1), (2, 4, 5, 6, 7)),
        (nn.Conv3d(4, 4, 1), lambda x: functional.adaptive_avg_pool3d(x, 1), (2, 4, 5, 6, 7)),
        (nn.Conv2d(6, 6, 1, groups=3), lambda x: pool(x, 2), (2, 6, 8, 9)),
        (nn.Conv2d(6, 6, 1, padding="same"), lambda x: pool(x, 2), (2, 6, 8, 9)),
    ],
)
def test_every_number_of_dimensions(conv: Any, function: Function, shape: Any) -> None:
    conv.bias = None
    x = randn(*shape)
    model, graph, editor = move(lambda m, x: function(m.conv(x)), x, conv=conv)
    assert [rewrite.removed[0][:4] for rewrite in editor.rewrites] == ["conv"], editor.refusals
    assert_preserves(graph, model, [x])


def test_the_figures_are_those_of_the_cost_model() -> None:
    profile = CPU.profile
    for function, parts in (
        (lambda m, x: pool(m.norm(m.conv(x)), 2), {"norm": nn.BatchNorm2d(12)}),
        (lambda m, x: m.conv(pool(x, 3, 1, 1)), {}),
        (lambda m, x: m.norm(m.conv(pool(x, 3, 1, 1))), {"norm": nn.BatchNorm2d(12)}),
        (lambda m, x: m.conv(x).mean((2, 3)), {}),
    ):
        _, graph, editor = move(function, randn(2, 48, 20, 20), conv=nn.Conv2d(48, 12, 1), **parts)
        seconds = sum(node_seconds(node, profile) for node in operators(graph))
        assert f": {seconds * 1e6:.1f} µs instead of" in editor.rewrites[0].what


def test_dynamic_sizes() -> None:
    x = randn(2, 64, 20, 18)
    dynamic = {"dynamic_shapes": {"inputs": ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)}}
    model, graph, editor = move(
        lambda m, x: m.tail(pool(m.conv(x).relu(), 3, 1, 1)) + pool(m.head(x), 2).mean(),
        x,
        options=dynamic,
        conv=nn.Conv2d(64, 64, 3),
        tail=nn.Conv2d(64, 8, 1),
        head=nn.Conv2d(64, 64, 1),
    )
    assert len(editor.rewrites) == 2
    for shape in ((2, 64, 20, 18), (3, 64, 9, 7)):
        assert_preserves(graph, model, [randn(*shape)])


def test_the_weights_of_a_shared_convolution_stay() -> None:
    x = randn(2, 8, 8, 8)
    model, graph, editor = move(
        lambda m, x: m.conv(x).mean((2, 3)) + pool(m.conv(x.relu()), 8).flatten(1),
        x,
        conv=nn.Conv2d(8, 8, 1),
    )
    assert len(editor.rewrites) == 2
    assert_preserves(graph, model, [x])


def test_the_collapse_reaches_what_it_reached_before() -> None:
    x = randn(1, 4, 6, 6)
    model, graph, editor = move(lambda m, x: pool(m.conv(x), 2), x, conv=nn.Conv2d(4, 4, 1))
    assert editor.modified
    assert Collapse().run(graph).modified
    assert ops(graph) == {"conv2d": 1}
    assert_preserves(graph, model, [x])


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
    graph, editor = apply(MoveResampling(), model, x)
    assert_same_structure(graph, Head(False).double(), x)
    assert_preserves(graph, model, [x])
    (rewrite,) = editor.rewrites
    assert rewrite.removed == ("upsample_bilinear2d", "conv2d", "batch_norm")
    assert graph_cost(graph).macs * 4 == graph_cost(captured(model, x).graph_module).macs
    seconds = sum(node_seconds(node, CPU.profile) for node in operators(graph)[:-1])
    assert f": {seconds * 1e6:.1f} µs instead of" in rewrite.what
    assert not MoveResampling().run(graph).modified


# Of [2, 6, 5, 7], or of another number of dimensions.
INTERPOLATIONS: dict[str, Function] = {
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


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_every_interpolation_of_images(name: str) -> None:
    function, x = INTERPOLATIONS[name], randn(2, 6, 5, 7)
    model, graph, editor = move(lambda m, x: m.conv(function(x)), x, conv=nn.Conv2d(6, 6, 1))
    expected = Model(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(6, 6, 1)).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear"])
def test_interpolation_of_signals(mode: str) -> None:
    x, conv = randn(2, 6, 9), nn.Conv1d(6, 4, 1, groups=2)
    model, graph, editor = move(
        lambda m, x: m.conv(upsample(x, scale_factor=2, mode=mode)), x, conv=conv
    )
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear"])
def test_interpolation_of_volumes(mode: str) -> None:
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
    assert not MoveResampling().run(graph).modified


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_dynamic_sizes_of_an_interpolation(mode: str) -> None:
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


def test_a_pool_and_an_interpolation_move_in_one_run() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return pool(m.first(x), 2).relu().mean() + m.second(upsample(x, scale_factor=2))

    x, parts = randn(1, 8, 6, 8), {"first": nn.Conv2d(8, 8, 1), "second": nn.Conv2d(8, 8, 1)}
    model, graph, editor = move(forward, x, **parts)
    assert [rewrite.removed[0] for rewrite in editor.rewrites] == ["conv2d", "upsample_nearest2d"]
    assert_preserves(graph, model, [x])
    assert not MoveResampling().run(graph).modified


# ------------------------------------------------------------------------------- refuses and keeps


def read_twice(m: Any, x: Tensor) -> Any:
    y = m.same(x)
    return pool(y, 2), y.relu()


def pool_read_twice(m: Any, x: Tensor) -> Any:
    y = pool(x, 3, 1, 1)
    return m.narrow(y), y.relu()


def larger(x: Tensor) -> Tensor:
    return upsample(x, scale_factor=2)


def interpolation_read_twice(m: Any, x: Tensor) -> Any:
    y = larger(x)
    return m.same(y), y.relu()


REFUSED: dict[str, tuple[Function, str]] = {
    "1. slower": (
        lambda m, x: pool(m.narrow(x), 3, 2),
        r"avg_pool2d before conv2d would take 6,400 MACs and .* µs, .* µs as is",
    ),
    "1. slower interpolation": (
        lambda m, x: upsample(m.narrow(x), scale_factor=0.9),
        "_nearest2d before conv2d would take .* MACs and .* µs, .* µs as is",
    ),
    "2. a convolution that is read twice": (read_twice, "conv2d is also read by relu"),
    "2. a pool that is read twice": (pool_read_twice, "avg_pool2d is also read by relu"),
    "2. an interpolation that is read twice": (
        interpolation_read_twice,
        "_nearest2d is also read by relu",
    ),
    "3. a bias before counted zeros": (
        lambda m, x: pool(m.same(x), 3, 2, 1),
        "a bias would not pass through: the weights of avg_pool2d do not add up to 1",
    ),
    "3. a bias before another divisor": (
        lambda m, x: pool(m.same(x), 2, divisor_override=3),
        "a bias would not pass through",
    ),
    "3. a shift of the norm": (
        lambda m, x: pool(m.norm(m.bare(x)), 3, 2, 1),
        "a bias would not pass through",
    ),
}


def parts() -> dict[str, Any]:
    return {
        "same": nn.Conv2d(16, 16, 1),
        "bare": nn.Conv2d(16, 16, 1, bias=False),
        "norm": nn.BatchNorm2d(16),
        "narrow": nn.Conv2d(16, 1, 1),
        "wide": nn.Conv2d(16, 64, 1),
        "strided": nn.Conv2d(16, 16, 1, stride=2),
        "padded": nn.Conv2d(16, 16, 1, padding=1),
        "large": nn.Conv2d(16, 16, 3),
        "grouped": nn.Conv2d(16, 16, 1, groups=2),
    }


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    function, reason = REFUSED[name]
    model, graph, editor = move(function, x := randn(1, 16, 41, 41), **parts())
    assert not editor.modified
    (refusal,) = editor.refusals
    assert re.search(reason, refusal.reason)
    assert to_text(graph) == to_text(captured(model, x).graph_module)


KEPT: dict[str, Function] = {
    "1. narrow before a pool of every position": lambda m, x: pool(m.narrow(x), 3, 1, 1),
    "1. wide after a pool": lambda m, x: m.wide(pool(x, 2)),
    "1. interpolation after a convolution": lambda m, x: larger(m.same(x)),
    "1. one size": lambda m, x: m.same(upsample(x, scale_factor=1.0, mode="bilinear")),
    "4. a stride after interpolation": lambda m, x: m.strided(larger(x)),
    "4. a larger kernel after interpolation": lambda m, x: m.large(larger(x)),
    "4. computed weights after interpolation": lambda m, x: functional.conv2d(
        larger(x), m.same.weight + x.mean()
    ),
    "4. a stride": lambda m, x: pool(m.strided(x), 2),
    "4. padding": lambda m, x: pool(m.padded(x), 2),
    "4. a larger kernel": lambda m, x: pool(m.large(x), 2),
    "4. computed weights": lambda m, x: pool(functional.conv2d(x, m.same.weight + x.mean()), 2),
    "4. a maximum pool": lambda m, x: functional.max_pool2d(m.same(x), 2),
    "4. one image, not a batch": lambda m, x: pool(m.same(x[0]), 2),
    "5. groups before a mean": lambda m, x: m.grouped(x).mean((2, 3)),
    "a mean over the channels": lambda m, x: m.same(x).mean((1, 2), keepdim=True),
    "a mean over everything": lambda m, x: m.same(x).mean(),
    "a mean that drops the rows": lambda m, x: m.same(x).mean(2),
    "a shuffle": lambda m, x: functional.pixel_shuffle(m.same(x), 2),
    "something between": lambda m, x: pool(m.same(x).relu(), 2),
    "something after interpolation": lambda m, x: m.same(larger(x).relu()),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    model, graph, editor = move(KEPT[name], x := randn(2, 16, 9, 9), **parts())
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_half_precision_moves_in_its_own_dtype() -> None:
    model = Model(lambda m, x: pool(m.conv(x), 2), conv=nn.Conv2d(16, 16, 1)).bfloat16()
    graph, editor = apply(MoveResampling(), model, x := torch.randn(1, 16, 8, 8).bfloat16())
    assert editor.modified
    assert run(graph, x)[0].dtype == torch.bfloat16


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(14))
@given(data=st.data())
def test_every_move_of_a_pool_is_exact(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    def flag() -> bool:
        return data.draw(st.booleans())

    torch.manual_seed(draw(0, 1000))
    groups = draw(1, 2)
    channels, out = groups * draw(1, 12), groups * draw(1, 12)
    kernel = (draw(1, 4), draw(1, 4))
    options: dict[str, Any] = {
        "stride": (draw(1, 3), draw(1, 3)),
        "padding": (draw(0, kernel[0] // 2), draw(0, kernel[1] // 2)),
        "ceil_mode": flag(),
        "count_include_pad": flag(),
        "divisor_override": draw(1, 5) if draw(0, 3) == 0 else None,
    }
    first, normed = flag(), flag()

    def function(m: Any, x: Tensor) -> Tensor:
        if first:
            x = pool(x, kernel, **options)
        x = m.conv(x)
        x = m.norm(x) if normed else x
        return x if first else pool(x, kernel, **options)

    x = randn(draw(1, 2), channels, draw(4, 12), draw(4, 12))
    conv = nn.Conv2d(channels, out, 1, groups=groups, bias=flag())
    model, graph, editor = move(function, x, conv=conv, norm=nn.BatchNorm2d(out))
    assert not any("undone" in refusal.reason for refusal in editor.refusals)
    wanted = run_flat(captured(model, x).graph_module, [x])
    assert relative_error(run_flat(graph, [x]), wanted) <= 1e-10
    assert not MoveResampling().run(graph).modified


@settings(deadline=None, max_examples=draws(14))
@given(data=st.data())
def test_every_move_of_an_interpolation_is_exact(data: st.DataObject) -> None:
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
    assert not MoveResampling().run(graph).modified
