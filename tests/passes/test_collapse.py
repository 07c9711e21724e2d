"""Affine regions collapse into one operator, and only where that is exact and predicted faster."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from passfx.graph.editor import Editor
from passfx.graph.evaluate import run_flat
from passfx.passes.collapse import Collapse
from passfx.verify.error import relative_error
from tests.helpers import (
    apply,
    assert_preserves,
    assert_same_structure,
    draws,
    ops,
    randomize,
)
from tests.passes.strategies import Model, constants, run

Function = Callable[..., Any]
DYNAMIC = torch.export.Dim.DYNAMIC
LEAK = "the bias of the operator before would leak over its zero padding"
ZEROS = "its padding is zeros where the operator before, past the border, has values"


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def layer(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)


def conv(out: int = 4, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, out, kernel, **options)


def collapse(
    function: Function, *inputs: Tensor, options: Any = None, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model with random norms, the graph it collapses to, and the record."""
    model = randomize(Model(function, **parts).double())
    return model, *apply(Collapse(), model, *inputs, **(options or {}))


# ------------------------------------------------------------------------------------------- fires

PARTS: dict[str, Callable[[], Any]] = {
    "same": lambda: conv(padding=1),
    "bare": lambda: conv(padding=1, bias=False),
    "wide": lambda: conv(6),
    "one": lambda: conv(4, 1),
    "bare_one": lambda: conv(4, 1, bias=False),
    "depthwise": lambda: conv(padding=1, groups=4),
    "strided": lambda: conv(stride=2),
    "norm": lambda: nn.BatchNorm2d(4),
    "norm_a": lambda: nn.BatchNorm2d(4),
    "norm_b": lambda: nn.BatchNorm2d(4),
    "alpha": lambda: nn.Parameter(torch.tensor(0.3)),
    "gamma": lambda: nn.Parameter(torch.randn(4, 1, 1)),
}


def repvgg(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.bare(x)) + m.norm_a(m.bare_one(x)) + m.norm_b(x)


# Each model of [2, 4, 7, 6] and the one convolution that it becomes.
FIRES: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "a norm after": (lambda m, x: m.norm(m.same(x)), lambda: conv(padding=1)),
    "a norm before 1x1": (lambda m, x: m.one(m.norm(x)), lambda: conv(4, 1)),
    "a norm before, without padding": (lambda m, x: m.wide(m.norm(x)), lambda: conv(6)),
    "the branches of RepVGG": (repvgg, lambda: conv(padding=1)),
    "a scaled 1x1 beside 3x3": (
        lambda m, x: m.alpha * m.one(x) + m.same(x),
        lambda: conv(padding=1),
    ),
    "a skip path": (lambda m, x: x + m.depthwise(x), lambda: conv(padding=1, groups=4)),
    "a difference": (lambda m, x: x - m.same(x), lambda: conv(padding=1)),
    "LayerScale": (lambda m, x: m.same(x) * m.gamma, lambda: conv(padding=1)),
    "ReZero": (lambda m, x: x + m.alpha * m.same(x), lambda: conv(padding=1)),
    "a pad": (
        lambda m, x: m.wide(functional.pad(x, (2, 2, 1, 1))),
        lambda: conv(6, padding=(1, 2)),
    ),
    "two 1x1": (lambda m, x: m.one(m.bare_one(x)), lambda: conv(4, 1)),
    "all padding on the first": (
        lambda m, x: m.one(m.same(x)),
        lambda: conv(padding=1),
    ),
    "a pool": (
        lambda m, x: functional.avg_pool2d(m.one(x), 2),
        lambda: conv(4, 2, stride=2),
    ),
    "a pool that counts its padding": (
        lambda m, x: functional.avg_pool2d(m.bare_one(x), 3, 1, 1),
        lambda: conv(padding=1, bias=False),
    ),
    "arithmetic": (lambda m, x: m.wide((1 - x) / 2 + 3), lambda: conv(6)),
    "the opposite": (lambda m, x: -m.same(x), lambda: conv(padding=1)),
    "two branches stacked": (
        lambda m, x: torch.cat([m.one(x), m.same(x)], 1),
        lambda: conv(8, padding=1),
    ),
    "some of the channels": (lambda m, x: m.same(x)[:, 1:3], lambda: conv(2, padding=1)),
}


@pytest.mark.parametrize("name", FIRES)
def test_one_convolution_remains(name: str) -> None:
    function, expected = FIRES[name]
    x, parts = randn(2, 4, 7, 6), {key: make() for key, make in PARTS.items()}
    model, graph, editor = collapse(function, x, **parts)
    assert_same_structure(graph, Model(layer, layer=expected()).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


@pytest.mark.parametrize(
    ("kind", "norm", "shape"),
    [
        (nn.Conv1d, nn.BatchNorm1d, (2, 4, 9)),
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 5, 6)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 4, 5, 4, 3)),
    ],
)
def test_every_convolution_takes_a_norm(kind: Any, norm: Any, shape: tuple[int, ...]) -> None:
    x, options = randn(*shape), {"stride": 2, "padding": 1, "groups": 2}
    model, graph, editor = collapse(
        lambda m, x: m.norm(m.layer(x)), x, layer=kind(4, 6, 3, bias=False, **options), norm=norm(6)
    )
    assert_same_structure(graph, Model(layer, layer=kind(4, 6, 3, **options)).double(), x)
    assert editor.rewrites[0].removed[1:] == ("batch_norm",)
    assert set(constants(graph)) == {"layer.weight", "layer.bias"}
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize(
    "after", [lambda: nn.BatchNorm1d(5), lambda: nn.Linear(5, 5)], ids=["norm", "linear"]
)
def test_a_linear_layer_takes_what_follows(after: Callable[[], nn.Module]) -> None:
    x = randn(3, 4)
    model, graph, editor = collapse(
        lambda m, x: m.after(m.layer(x)), x, layer=nn.Linear(4, 5), after=after()
    )
    assert_same_structure(graph, Model(layer, layer=nn.Linear(4, 5)).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_linear_layers_of_tokens_collapse_with_their_scale_and_skip() -> None:
    x = randn(2, 5, 4)
    model, graph, _ = collapse(
        lambda m, x: x + m.layer(x) * m.scale, x, layer=nn.Linear(4, 4), scale=torch.randn(4)
    )
    assert ops(graph) == {"linear": 1}
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("trained", [True, False])
def test_two_heads_are_one_linear_layer(trained: bool) -> None:
    def heads(m: Any, x: Tensor) -> Tensor:
        return (m.a(m.norm_a(x)) + m.b(m.norm_b(x))) / 2 if trained else m.a(x) + m.b(x)

    x, norms = randn(3, 4), {name: nn.BatchNorm1d(4) for name in ("norm_a", "norm_b")}
    model, graph, _ = collapse(heads, x, a=nn.Linear(4, 5), b=nn.Linear(4, 5), **norms)
    assert_same_structure(graph, Model(layer, layer=nn.Linear(4, 5)).double(), x)
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("batch", [{}, {"dynamic_shapes": (({0: DYNAMIC},),)}])
def test_a_norm_behind_a_reshape_of_its_tokens_folds(batch: Any) -> None:
    """LeViT normalises (batch · tokens) × features."""

    def tokens(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        return m.norm(y.flatten(0, 1)).reshape_as(y)

    x, parts = randn(2, 3, 4), {"layer": nn.Linear(4, 5, bias=False), "norm": nn.BatchNorm1d(5)}
    model, graph, _ = collapse(tokens, x, options=batch, **parts)
    assert ops(graph) == {"linear": 1}
    assert_preserves(graph, model, [x])
    parts = {"layer": nn.Linear(4, 5), "norm": nn.BatchNorm1d(5)}
    model, graph, _ = collapse(
        lambda m, x: m.norm(m.layer(x).flatten(0, 1)), x, options=batch, **parts
    )
    assert ops(graph) == {"linear": 1, "reshape": 1}
    assert_preserves(graph, model, [x])


@pytest.mark.parametrize("transposed", [{}, {"groups": 2}])
def test_transposed_convolutions_take_norms_after_and_scales_before(transposed: Any) -> None:
    options = {"stride": 2, "padding": 1, "output_padding": 1, **transposed}
    x, make = randn(2, 4, 5, 4), lambda: nn.ConvTranspose2d(4, 6, 3, **options)
    model, graph, editor = collapse(
        lambda m, x: m.norm(m.layer(x * m.gamma)),
        x,
        layer=make(),
        norm=nn.BatchNorm2d(6),
        gamma=torch.randn(4, 1, 1),
    )
    assert_same_structure(graph, Model(layer, layer=make()).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_an_output_padding_that_only_the_dilation_allows() -> None:
    part = nn.ConvTranspose2d(4, 6, 1, dilation=2, output_padding=1)
    model, graph, _ = collapse(lambda m, x: m.layer(x) / 3, x := randn(2, 4, 3, 5), layer=part)
    assert ops(graph) == {"conv_transpose2d": 1}
    assert_preserves(graph, model, [x])


def focus(x: Tensor) -> Tensor:
    """YOLOv5's slices."""
    corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
    return torch.cat(corners, 1)


@pytest.mark.parametrize("rearrange", [focus, lambda x: functional.pixel_unshuffle(x, 2)])
def test_space_to_depth_and_3x3_are_6x6_of_stride_2(rearrange: Function) -> None:
    x = randn(2, 4, 8, 6)
    model, graph, _ = collapse(
        lambda m, x: m.layer(rearrange(x)), x, layer=nn.Conv2d(16, 8, 3, padding=1)
    )
    expected = nn.Conv2d(4, 8, 6, stride=2, padding=2)
    assert_same_structure(graph, Model(layer, layer=expected).double(), x)
    assert_preserves(graph, model, [x])


def test_space_to_depth_of_dynamic_sizes_stays() -> None:
    """The slices of odd sizes do not agree."""
    parts, dynamic = {"layer": nn.Conv2d(16, 8, 3, padding=1)}, torch.export.Dim
    options = {"dynamic_shapes": (({2: 2 * dynamic("half", min=2, max=64)},),)}
    model, graph, _ = collapse(
        lambda m, x: m.layer(focus(x)), randn(1, 4, 8, 6), options=options, **parts
    )
    assert ops(graph)["cat"] == 1
    assert_preserves(graph, model, [randn(1, 4, 12, 6)])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders_that_repeat_values(mode: str) -> None:
    def branches(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.full(m.before(x)) + m.one(m.before(x)) + m.before(x))

    x, full = randn(2, 4, 6, 7), conv(padding=1, padding_mode=mode, bias=False)
    norms = {"before": nn.BatchNorm2d(4), "norm": nn.BatchNorm2d(4)}
    model, graph, _ = collapse(branches, x, full=full, one=conv(4, 1), **norms)
    expected = Model(layer, layer=conv(padding=1, padding_mode=mode)).double()
    assert_same_structure(graph, expected, x)
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


def test_a_border_of_values_in_between_is_refused() -> None:
    parts = {"a": conv(padding=1), "b": conv(padding=1, padding_mode="reflect")}
    found = reasons(lambda m, x: m.b(m.a(x)), **parts)
    assert found == ["its border is reflect, of values in between"]
    found = reasons(lambda m, x: m.a(m.b(x)), **parts)
    assert found == [ZEROS]


def test_a_norm_goes_into_all_that_read_it() -> None:
    def fan(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.norm(x)
        return m.one(y).relu(), m.wide(y), m.head(y.transpose(1, 3))

    x, parts = randn(2, 4, 5, 6), {name: PARTS[name]() for name in ("norm", "one", "wide")}
    scaled = {**parts, "head": nn.Identity()}
    model, graph, _ = collapse(fan, x, **scaled)
    assert ops(graph)["batch_norm"] == 1  # the transpose needs it
    model, graph, editor = collapse(
        lambda m, x: (lambda y: (m.one(y).relu(), m.wide(y)))(m.norm(x)), x, **parts
    )
    assert ops(graph) == {"conv2d": 2, "relu": 1}
    assert len(editor.rewrites) == 2
    with torch.no_grad():
        for result, wanted in zip(graph(x), model.eval()(x), strict=True):
            assert relative_error(result, wanted) <= 1e-10


def test_a_norm_stays_where_one_reader_pads_it() -> None:
    def fan(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.one(y).relu() + m.same(y)

    parts = {name: PARTS[name]() for name in ("norm", "one", "same")}
    assert LEAK in reasons(fan, **parts)


def test_uneven_padding_is_exact() -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.layer(functional.pad(x, (0, 1, -1, 2))))

    for shape in [(1, 4, 8, 7), (2, 4, 7, 9)]:
        x = randn(*shape)
        model, graph, editor = collapse(padded, x, layer=conv(stride=2), norm=nn.BatchNorm2d(4))
        assert ops(graph) == {"pad": 1, "conv2d": 1}
        assert len(editor.rewrites) == 1
        assert_preserves(graph, model, [x])


@pytest.mark.parametrize("kernel", [(2, 4), (4, 3), 2])
def test_padding_by_name_of_even_kernels_is_exact(kernel: Any) -> None:
    x = randn(2, 4, 7, 6)
    named = conv(4, kernel, padding="same")
    model, graph, _ = collapse(
        lambda m, x: m.norm(m.layer(x)), x, layer=named, norm=nn.BatchNorm2d(4)
    )
    assert ops(graph) == {"constant_pad_nd": 1, "conv2d": 1}
    assert_preserves(graph, model, [x])
    assert not Collapse().run(graph).modified


def test_a_convolution_called_twice_keeps_its_weights() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        return m.a(m.layer(x)).relu() + m.b(m.layer(x)).sigmoid() + m.layer(x).tanh()

    x, shared = randn(2, 4, 5, 6), conv(padding=1)
    parts = {"layer": shared, "a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4)}
    model, graph, editor = collapse(twice, x, **parts)
    assert ops(graph)["batch_norm"] == 0
    assert len(editor.rewrites) == 2
    assert torch.equal(constants(graph)["layer.weight"], shared.weight)
    assert_preserves(graph, model, [x])


def test_weights_shared_between_layers_are_not_overwritten() -> None:
    first, second = conv(padding=1), conv(padding=1)
    second.weight = first.weight
    x = randn(2, 4, 5, 6)
    model, graph, editor = collapse(
        lambda m, x: m.norm(m.first(x)).relu() + m.second(x.tanh()),
        x,
        first=first,
        second=second,
        norm=nn.BatchNorm2d(4),
    )
    assert len(editor.rewrites) == 1
    weights = [item for item in constants(graph).values() if item.ndim == 4]
    assert len(weights) == 2
    assert any(torch.equal(item, first.weight) for item in weights)
    assert_preserves(graph, model, [x])


def test_a_norm_with_weight_zero_leaves_its_bias() -> None:
    x, norm = randn(2, 4, 5, 6), nn.BatchNorm2d(4)
    model = randomize(Model(lambda m, x: x + m.norm(m.layer(x)), layer=conv(padding=1), norm=norm))
    nn.init.zeros_(norm.weight)
    graph, editor = apply(Collapse(), model.double(), x)
    assert sum(ops(graph).values()) == 1  # one sum per channel
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_branch_that_is_dear_alone_is_free_in_a_sum() -> None:
    x = randn(1, 32, 16, 16)
    parts = {
        "mix": nn.Conv2d(32, 32, 1, bias=False),
        "edges": nn.Conv2d(32, 32, 3, padding=1, groups=32),
        "dense": nn.Conv2d(32, 32, 3, padding=1),
    }
    model, graph, _ = collapse(lambda m, x: m.edges(m.mix(x)) + m.dense(x), x, **parts)
    assert ops(graph) == {"conv2d": 1}
    assert_preserves(graph, model, [x])


# ----------------------------------------------------------------------------------- dynamic sizes


def test_a_dynamic_batch_keeps_what_the_size_allows() -> None:
    def strided(m: Any, x: Tensor) -> Tensor:
        return m.after(m.first(x))

    parts = {"first": conv(stride=2, padding=1, bias=False), "after": conv(padding=1)}
    x = randn(2, 4, 7, 7)
    options = {"dynamic_shapes": (({0: DYNAMIC},),)}
    model, graph, _ = collapse(strided, x, options=options, **parts)
    assert ops(graph) == {"conv2d": 1}
    for batch in (1, 5):
        assert_preserves(graph, model, [randn(batch, 4, 7, 7)])
    options = {"dynamic_shapes": (({2: DYNAMIC, 3: DYNAMIC},),)}
    model, graph, editor = collapse(strided, x, options=options, **parts)
    assert ops(graph) == {"conv2d": 2}
    assert [item.reason for item in editor.refusals] == [ZEROS]


def test_dynamic_sizes_collapse_where_every_size_is_exact() -> None:
    options = {"dynamic_shapes": (({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},),)}
    parts = {name: PARTS[name]() for name in ("bare", "bare_one", "norm", "norm_a", "norm_b")}
    model, graph, _ = collapse(repvgg, randn(2, 4, 7, 6), options=options, **parts)
    assert ops(graph) == {"conv2d": 1}
    for shape in [(1, 4, 8, 8), (3, 4, 5, 12)]:
        assert_preserves(graph, model, [randn(*shape)])


# ------------------------------------------------------------------------------- refuses and keeps


def reasons(function: Function, **parts: Any) -> list[str]:
    """Why nothing was rewritten."""
    _, _, editor = collapse(function, randn(2, 4, 6, 8), **parts)
    assert not editor.modified
    return [item.reason for item in editor.refusals]


def test_refuses_2_padding_that_hides_values() -> None:
    parts = {"a": conv(padding=1, bias=False), "b": conv(padding=1)}
    assert reasons(lambda m, x: m.b(m.a(x)), **parts) == [ZEROS]


def test_refuses_3_a_bias_that_would_leak() -> None:
    parts = {"a": nn.BatchNorm2d(4), "b": conv(padding=1)}
    assert reasons(lambda m, x: m.b(m.a(x)), **parts) == [LEAK]


def test_refuses_4_what_is_predicted_to_be_slower() -> None:
    parts = {
        "a": nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
        "b": nn.Conv2d(64, 128, 1),
    }
    _, graph, editor = collapse(lambda m, x: m.b(m.a(x)), randn(1, 64, 32, 32), **parts)
    assert ops(graph) == {"conv2d": 2}
    (found,) = editor.refusals
    assert found.reason.startswith("2 operators as one would take 75,497,472 MACs and ")


def test_refuses_5_a_norm_of_another_dtype() -> None:
    model = Model(lambda m, x: m.norm(m.layer(x)), layer=conv().bfloat16(), norm=nn.BatchNorm2d(4))
    graph, editor = apply(Collapse(), randomize(model), torch.randn(2, 4, 5, 6).bfloat16())
    assert ops(graph) == {"conv2d": 1, "batch_norm": 1}
    assert [item.reason for item in editor.refusals] == ["it computes in bfloat16 and float32"]


def test_refuses_a_weight_that_overflows() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, 4000.0)
    model = Model(lambda m, x: m.layer(x) * 100, layer=layer).half()
    x = torch.full((1, 1, 2, 2), 1e-3, dtype=torch.float16)
    graph, editor = apply(Collapse(), model, x)
    assert not editor.modified
    (found,) = editor.refusals
    assert found.reason == "undone: a folded value overflows torch.float16"
    assert set(constants(graph)) == {"layer.weight"}
    assert run(graph, x).isfinite().all()


KEPT: dict[str, Function] = {
    "1. a value that is an output": lambda m, x: (lambda y: (y, m.norm(y)))(m.same(x)),
    "1. a value read outside": lambda m, x: (lambda y: m.norm(y) + y.relu())(m.same(x)),
    "5. a norm in training mode": lambda m, x: functional.batch_norm(
        m.same(x), None, None, training=True
    ),
    "5. a norm without statistics": lambda m, x: m.untracked(m.same(x)),
    "5. an instance norm": lambda m, x: m.instance(m.same(x)),
    "5. a group norm": lambda m, x: m.group(m.same(x)),
    "5. a layer norm": lambda m, x: functional.layer_norm(m.same(x), (4, 7, 6)),
    "5. a pool that counts no padding": lambda m, x: functional.avg_pool2d(
        m.bare_one(x), 3, 1, 1, count_include_pad=False
    ),
    "5. a pool that rounds up": lambda m, x: functional.avg_pool2d(m.one(x), 3, 2, ceil_mode=True),
    "5. the greatest value": lambda m, x: functional.max_pool2d(m.same(x), 2),
    "5. another dtype": lambda m, x: (m.same(x).float() * m.single).double(),
    "5. a computed weight": lambda m, x: functional.conv2d(
        m.same(x), x.mean((0, 2, 3)).diag()[..., None, None]
    ),
    "5. a pad of ones": lambda m, x: m.wide(functional.pad(x, (1, 1), value=1.0)),
    "5. a pad that reflects": lambda m, x: m.wide(functional.pad(x, (1, 1, 1, 1), mode="reflect")),
    "5. a constant for each pixel": lambda m, x: m.same(x) * m.pixels,
    "a nonlinear operator between": lambda m, x: m.norm(m.same(x).relu()),
    "as many operators": lambda m, x: m.strided(functional.pad(x, (0, 1, 0, 1))),
    "pads and slices alone": lambda m, x: functional.pad(x, (1, 1))[:, :, 1:-1, ::2],
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    x, parts = randn(2, 4, 7, 6), {key: make() for key, make in PARTS.items()}
    parts |= {
        "untracked": nn.BatchNorm2d(4, track_running_stats=False),
        "instance": nn.InstanceNorm2d(4, affine=True),
        "group": nn.GroupNorm(2, 4),
        "pixels": torch.randn(7, 6),
    }
    model = Model(KEPT[name], **parts).double()
    model.single = nn.Parameter(torch.randn(4, 1, 1))
    _, editor = apply(Collapse(), randomize(model), x)
    assert not editor.modified


# --------------------------------------------------------------------------------------- preserves


@dataclass
class Program:
    """A random affine graph: each step computes one more value from earlier ones."""

    steps: list[Function] = field(default_factory=list)
    parts: list[nn.Module] = field(default_factory=list)

    def __call__(self, model: Any, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            values.append(step(model.parts, values))
        return values[-1], values[len(values) // 2].relu()


class Step:
    """The steps that a program is drawn from; `at` is the value that one reads."""

    def __init__(self, draw: st.DrawFn, program: Program, rank: int) -> None:
        self.draw, self.program, self.rank = draw, program, rank

    def layer(self, at: int, part: nn.Module) -> Function:
        number = len(self.program.parts)
        self.program.parts.append(part)
        return lambda parts, values: parts[number](values[at])

    def each(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.draw(st.integers(low, high)) for _ in range(self.rank))

    def conv(self, at: int, x: Tensor) -> Function:
        kind = (nn.Conv1d, nn.Conv2d)[self.rank - 1]
        kernel, dilation, stride = self.each(1, 3), self.each(1, 2), self.each(1, 2)
        padding, even = self.each(0, 2), self.draw(st.booleans())
        if even:  # the size stays, so that branches can be added
            kernel, stride = (3,) * self.rank, (1,) * self.rank
            padding = dilation
        groups = self.draw(st.sampled_from([1, 2, 4]))
        options: Any = {"padding": padding, "dilation": dilation, "stride": stride}
        bias = self.draw(st.booleans())
        return self.layer(at, kind(4, 4, kernel, groups=groups, bias=bias, **options))

    def norm(self, at: int, x: Tensor) -> Function:
        return self.layer(at, (nn.BatchNorm1d, nn.BatchNorm2d)[self.rank - 1](4))

    def pool(self, at: int, x: Tensor) -> Function:
        kernel, padding = self.draw(st.sampled_from([(2, 0), (3, 1), (2, 1)]))
        stride, counted = self.draw(st.integers(1, 2)), self.draw(st.booleans())
        pool = (nn.AvgPool1d, nn.AvgPool2d)[self.rank - 1]
        return self.layer(at, pool(kernel, stride, padding, count_include_pad=counted))

    def pad(self, at: int, x: Tensor) -> Function:
        amounts = [*self.each(-1, 2), *self.each(-1, 2)]
        return lambda _, values: functional.pad(values[at], amounts)

    def scale(self, at: int, x: Tensor) -> Function:
        number = self.draw(st.sampled_from([-1.5, 0.3, 2]))
        if self.draw(st.booleans()):
            return lambda _, values: values[at] * number
        return lambda _, values: number - values[at] / 2

    def cut(self, at: int, x: Tensor) -> Function:
        start, step = self.draw(st.integers(0, 1)), self.draw(st.integers(1, 2))
        return lambda _, values: values[at][:, :, start::step]

    def stack(self, at: int, other: int) -> Function:
        number = len(self.program.parts)
        kind = (nn.Conv1d, nn.Conv2d)[self.rank - 1]
        self.program.parts.append(kind(8, 4, 1))
        return lambda parts, values: parts[number](torch.cat([values[at], values[other]], 1))

    def add(self, at: int, other: int) -> Function:
        alpha = self.draw(st.sampled_from([1, -1, 0.5]))
        return lambda _, values: torch.add(values[at], values[other], alpha=alpha)


@st.composite
def programs(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A float64 model of branches, chains and sums, and an input."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    rank, program = draw(st.integers(1, 2)), Program()
    step = Step(draw, program, rank)
    x = randn(2, 4, *(draw(st.integers(5, 9)) for _ in range(rank)))
    values = [x]
    single: list[Any] = [step.conv, step.conv, step.norm, step.pool, step.pad, step.scale, step.cut]
    for _ in range(draw(st.integers(2, 8))):
        at = draw(st.integers(max(0, len(values) - 3), len(values) - 1))
        same = [n for n, item in enumerate(values) if n != at and item.shape == values[at].shape]
        if same and draw(st.booleans()):
            join = draw(st.sampled_from([step.add, step.add, step.stack]))
            function = join(at, draw(st.sampled_from(same)))
        else:
            function = draw(st.sampled_from(single))(at, values[at])
        parts = [part.double() for part in program.parts]
        try:
            with torch.no_grad():
                value = function(parts, values)
        except RuntimeError:  # an input smaller than the kernel
            continue
        if value.numel() and min(value.shape[2:]) > 1:
            program.steps.append(function)
            values.append(value)
    model = Model(program, parts=nn.ModuleList(program.parts)).double()
    return randomize(model, draw(st.integers(0, 99))), x


@given(programs())
@settings(max_examples=draws(12), deadline=None, derandomize=True)
def test_a_random_region_is_preserved_and_the_second_run_rewrites_nothing(
    drawn: tuple[nn.Module, Tensor],
) -> None:
    model, x = drawn
    graph, editor = apply(Collapse(), model, x)
    with torch.no_grad():
        wanted = model.eval()(x)
    for result, expected in zip(run_flat(graph, [x]), wanted, strict=True):
        assert relative_error(result, expected) <= 1e-10
    assert not any(item.reason.startswith("undone") for item in editor.refusals)
    assert not Collapse().run(graph).modified
