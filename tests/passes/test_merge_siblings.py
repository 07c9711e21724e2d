"""Layers of one input become one operator and a split, only where that is predicted faster."""

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

from passfx.graph.editor import Certificate, Editor
from passfx.graph.evaluate import run_flat
from passfx.graph.text import to_text
from passfx.passes.merge_siblings import MergeSiblings
from passfx.pipeline import optimize_graph
from passfx.target import CPU, CUDA, Target
from passfx.verify.error import relative_error
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Model, constants, convolutions, run

Function = Callable[..., Any]
DYNAMIC = torch.export.Dim.DYNAMIC


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def merge(
    function: Function, *inputs: Tensor, options: Any = None, target: Target = CPU, **parts: Any
) -> tuple[nn.Module, GraphModule, Editor]:
    """A float64 model, the graph with its siblings merged, and the record."""
    model = Model(function, **parts).double()
    return model, *apply(MergeSiblings(target), model, *inputs, **(options or {}))


def assert_agrees(graph: GraphModule, model: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        wanted = model.eval()(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert relative_error(run_flat(graph, inputs), wanted) <= 1e-13


def assert_idempotent(graph: GraphModule) -> None:
    before = str(graph.graph)
    assert not MergeSiblings().run(graph).modified
    assert str(graph.graph) == before


# ------------------------------------------------------------------------------------------- fires


def three(m: Any, x: Tensor) -> Tensor:
    return m.a(x).sin() + m.b(x).cos() * m.c(x)


def three_parts(m: Any, x: Tensor) -> Tensor:
    a, b, c = m.whole(x).split_with_sizes([4, 4, 4], m.dim)
    return a.sin() + b.cos() * c


def attention(m: Any, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(m.a(x), m.b(x), m.c(x))


def attention_of_parts(m: Any, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*m.whole(x).split_with_sizes([4, 4, 4], 2))


def inception(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.a(x).relu(), m.c(m.b(x).relu())], 1)


def inception_of_parts(m: Any, x: Tensor) -> Tensor:
    a, b = m.whole(x).relu().split_with_sizes([4, 6], 1)
    return torch.cat([a, m.c(b)], 1)


def conv(out: int = 4, kernel: int = 1, inside: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, **options)


FIRES: dict[str, tuple[Function, Function, Callable[[], Any], Callable[[], Any], Tensor]] = {
    "query, key and value": (
        attention,
        attention_of_parts,
        lambda: {key: nn.Linear(4, 4) for key in "abc"},
        lambda: {"whole": nn.Linear(4, 12)},
        randn(2, 5, 4),
    ),
    "the branches of an inception block": (
        inception,
        inception_of_parts,
        lambda: {"a": conv(), "b": conv(6), "c": conv(5, 3, 6, padding=1)},
        lambda: {"whole": conv(10), "c": conv(5, 3, 6, padding=1)},
        randn(2, 3, 7, 6),
    ),
    "convolutions": (
        three,
        three_parts,
        lambda: {key: conv(4, 3, stride=2, padding=1, dilation=2) for key in "abc"},
        lambda: {"whole": conv(12, 3, stride=2, padding=1, dilation=2), "dim": 1},
        randn(2, 3, 7, 6),
    ),
    "convolutions padded to the same size": (
        three,
        three_parts,
        lambda: {key: conv(4, 2, padding="same") for key in "abc"},
        lambda: {"whole": conv(12, 2, padding="same"), "dim": 1},
        randn(2, 3, 7, 6),
    ),
    "convolutions of one dimension without bias": (
        three,
        three_parts,
        lambda: {key: nn.Conv1d(3, 4, 3, bias=False) for key in "abc"},
        lambda: {"whole": nn.Conv1d(3, 12, 3, bias=False), "dim": 1},
        randn(2, 3, 8),
    ),
    "convolutions of three dimensions": (
        three,
        three_parts,
        lambda: {key: nn.Conv3d(3, 4, 2) for key in "abc"},
        lambda: {"whole": nn.Conv3d(3, 12, 2), "dim": 1},
        randn(2, 3, 4, 3, 2),
    ),
    "convolutions without a batch": (
        three,
        three_parts,
        lambda: {key: conv() for key in "abc"},
        lambda: {"whole": conv(12), "dim": 0},
        randn(3, 5, 4),
    ),
    "one bias missing": (
        three,
        three_parts,
        lambda: {"a": conv(), "b": conv(bias=False), "c": conv()},
        lambda: {"whole": conv(12), "dim": 1},
        randn(2, 3, 4, 4),
    ),
}


@pytest.mark.parametrize("name", FIRES)
def test_siblings_become_one(name: str) -> None:
    function, expected, parts, whole, x = FIRES[name]
    model, graph, editor = merge(function, x, **parts())
    assert_same_structure(graph, Model(expected, **whole()).double(), x)
    assert len(editor.rewrites) == 1
    assert_agrees(graph, model, x)
    assert_idempotent(graph)


def test_the_record_and_the_names() -> None:
    x = randn(2, 3, 4, 4)
    _, graph, editor = merge(inception, x, a=conv(), b=conv(6), c=conv(5, 1, 6))
    (rewrite,) = editor.rewrites
    assert rewrite.what == "2 siblings as one and a split"
    assert (rewrite.at, rewrite.module) == ("conv2d", "a")
    assert rewrite.removed == ("conv2d", "relu", "conv2d_1", "relu_1")
    assert len(rewrite.added) == 5
    assert set(constants(graph)) == {"a.weight", "a.bias", "c.weight", "c.bias"}
    assert constants(graph)["a.weight"].shape == (10, 3, 1, 1)


ACTIVATIONS: dict[str, Function] = {
    "relu6": functional.relu6,
    "hardtanh": lambda y: functional.hardtanh(y, -2, 0.5),
    "clamp": lambda y: y.clamp(-1, 0.5),
    "silu": functional.silu,
    "gelu": lambda y: functional.gelu(y, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": functional.hardswish,
    "leaky_relu": lambda y: functional.leaky_relu(y, 0.3),
    "elu": lambda y: functional.elu(y, 0.5),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_activation_of_all(name: str) -> None:
    act = ACTIVATIONS[name]
    model, graph, _ = merge(
        lambda m, x: (act(m.a(x)), act(m.b(x))),
        x := randn(2, 5),
        a=nn.Linear(5, 3),
        b=nn.Linear(5, 2),
    )
    expected = Model(lambda m, x: act(m.a(x)).split_with_sizes([3, 2], 1), a=nn.Linear(5, 5))
    assert_same_structure(graph, expected.double(), x)
    assert_agrees(graph, model, x)


def test_siblings_that_the_model_returns() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        c = m.c(x)
        return m.a(x), m.b(x), c, c.relu()

    model, graph, editor = merge(forward, x := randn(2, 3), **{k: nn.Linear(3, 2) for k in "abc"})
    assert ops(graph) == {"linear": 1, "split_with_sizes": 1, "relu": 1}
    assert len(editor.rewrites) == 1
    assert_agrees(graph, model, x)


def test_activations_that_differ_stay_behind_the_split() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        return m.a(x).relu(), m.b(x).clamp(0, 6), m.c(x).clamp(0, 1)

    model, graph, _ = merge(forward, x := randn(2, 3), **{k: nn.Linear(3, 2) for k in "abc"})
    assert ops(graph) == {"linear": 1, "split_with_sizes": 1, "relu": 1, "clamp": 2}
    assert_agrees(graph, model, x)


def test_those_with_an_activation_in_common_are_first_and_then_all() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        return m.a(x), m.b(x).relu(), m.c(x), m.d(x).relu(), m.e(x).tanh()

    model, graph, editor = merge(forward, x := randn(2, 3), **{k: nn.Linear(3, 2) for k in "abcde"})
    assert ops(graph) == {"linear": 1, "split_with_sizes": 2, "relu": 1, "tanh": 1}
    assert [rewrite.what[0] for rewrite in editor.rewrites] == ["2", "4"]
    assert_agrees(graph, model, x)
    assert_idempotent(graph)


def test_siblings_of_siblings() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x).relu()
        return m.c(y).relu(), m.b(x).relu(), m.d(y).relu()

    model, graph, editor = merge(forward, x := randn(2, 3), **{k: nn.Linear(3, 3) for k in "abcd"})
    assert ops(graph) == {"linear": 2, "relu": 2, "split_with_sizes": 2}
    assert len(editor.rewrites) == 2
    assert_agrees(graph, model, x)
    assert_idempotent(graph)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_dynamic_batch(batch: int) -> None:
    parts = {"a": conv(), "b": conv(6), "c": conv(5, 3, 6, padding=1)}
    options = {"dynamic_shapes": {"inputs": ({0: DYNAMIC},)}}
    model, graph, editor = merge(inception, randn(2, 3, 5, 4), options=options, **parts)
    assert len(editor.rewrites) == 1
    assert_agrees(graph, model, randn(batch, 3, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_weights_are_the_same_numbers_in_the_same_dtype(dtype: torch.dtype) -> None:
    model = Model(three, a=conv(), b=conv(), c=conv()).to(dtype)
    graph, editor = apply(MergeSiblings(), model, x := torch.randn(2, 3, 4, 4).to(dtype))
    assert len(editor.rewrites) == 1
    weight = constants(graph)["a.weight"]
    assert weight.dtype == run(graph, x).dtype == dtype
    assert torch.equal(weight, torch.cat([model.a.weight, model.b.weight, model.c.weight]))


# ------------------------------------------------------------------------------- refuses and keeps


def pair(m: Any, x: Tensor) -> Tensor:
    return m.a(x).sin() + m.b(x).cos()


def test_refuses_what_is_predicted_slower() -> None:
    """1: with two siblings, the launch that is saved is the one of the split."""
    model, graph, editor = merge(pair, x := randn(2, 3, 4, 4), a=conv(), b=conv())
    assert not editor.modified
    (refusal,) = editor.refusals
    assert (refusal.at, refusal.module) == ("conv2d", "a")
    assert re.fullmatch(r"2 siblings as one would take [\d.]+ µs, [\d.]+ µs apart", refusal.reason)
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_refuses_by_the_profile_of_the_target() -> None:
    """1: the copies of a split are cheap where memory is fast."""
    x, parts = randn(2, 3, 40, 40), {key: conv(4, 3) for key in "abc"}
    _, _, editor = merge(three, x, **parts)
    assert editor.refusals[0].reason.endswith("µs apart") and not editor.modified
    _, _, editor = merge(three, x, target=CUDA, **parts)
    assert editor.modified and not editor.refusals


def test_a_large_input_that_is_read_once_pays_for_the_split() -> None:
    x = randn(2, 64, 20, 20)
    model, graph, editor = merge(pair, x, a=conv(1, inside=64), b=conv(1, inside=64))
    assert editor.modified
    assert_agrees(graph, model, x)


def test_refuses_a_weight_that_others_read() -> None:
    """2."""
    _, _, editor = merge(
        lambda m, x, y: three(m, x) + m.b(y).sum(), randn(2, 3), randn(1, 3),
        a=nn.Linear(3, 2), b=nn.Linear(3, 2), c=nn.Linear(3, 2),
    )  # fmt: skip
    assert not editor.modified
    assert [refusal.reason for refusal in editor.refusals] == [
        "the weight of linear_1 is read by others too, and would be stored twice"
    ]


def test_refuses_what_is_read_as_it_lies_in_memory() -> None:
    """3: as_strided takes a part of a split for a tensor of its own, and reads other numbers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x).relu() + m.b(x).relu().neg().as_strided((2, 2), (1, 2))

    _, _, editor = merge(forward, randn(2, 3), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    assert not editor.modified
    assert [refusal.reason for refusal in editor.refusals] == [
        "as_strided reads memory as it lies, and a part of a split lies otherwise"
    ]


def test_a_linear_layer_decides_how_its_result_lies() -> None:
    _, _, editor = merge(
        lambda m, x: m.d(three(m, x)).as_strided((2, 2), (1, 2)), randn(2, 3),
        **{key: nn.Linear(3, 2) for key in "abc"}, d=nn.Linear(2, 2),
    )  # fmt: skip
    assert editor.modified


def branches(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x).relu(), m.b(x).relu()


def computed(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = x[0, 0]
    return functional.linear(x, m.a * weight).relu(), functional.linear(x, m.a - weight).relu()


KEPT: dict[str, tuple[Function, dict[str, Any]]] = {
    "another padding": (branches, {"a": conv(4, 3), "b": conv(4, 3, padding=1)}),
    "another stride": (branches, {"a": conv(), "b": conv(stride=2)}),
    "another dilation": (branches, {"a": conv(4, 2), "b": conv(4, 2, dilation=2)}),
    "another kernel": (branches, {"a": conv(4, 1), "b": conv(4, 3)}),
    "padding by name": (branches, {"a": conv(4, 3), "b": conv(4, 3, padding="valid")}),
    "another input": (lambda m, x: (m.a(x).relu(), m.b(-x).relu()), {"a": conv(), "b": conv()}),
    "4. depthwise": (branches, {"a": conv(3, 3, groups=3), "b": conv(3, 3, groups=3)}),
    "4. computed weights": (computed, {"a": torch.tensor(2.0)}),
    "a single layer": (lambda m, x: m.a(x).relu(), {"a": conv()}),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    function, parts = KEPT[name]
    model, graph, editor = merge(function, x := randn(3, 3, 5, 4), **parts)
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_an_activation_with_other_settings_is_not_shared() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.leaky_relu(m.a(x), 0.1), functional.leaky_relu(m.b(x), 0.2)

    _, _, editor = merge(forward, randn(2, 3), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    assert not editor.modified
    assert len(editor.refusals) == 1


def test_a_clamp_to_a_tensor_is_not_shared() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return m.a(x).clamp(max=m.six), m.b(x).clamp(max=m.six)

    _, _, editor = merge(
        forward, randn(2, 3), a=nn.Linear(3, 2), b=nn.Linear(3, 2), six=torch.tensor(0.6)
    )
    assert not editor.modified


def test_a_merge_whose_certificate_fails_is_undone() -> None:
    x = randn(2, 3)
    model = Model(branches, a=nn.Linear(3, 2), b=nn.Linear(3, 2)).double()
    graph, _ = optimize_graph(captured(model, x), [])
    before, state = str(graph.graph), set(graph.state_dict())
    editor = MergeSiblings().run(graph, lambda edit: Certificate(1.0, "never"))
    editor.finish()
    assert not editor.modified
    assert [refusal.reason for refusal in editor.refusals] == ["undone: never"]
    assert (str(graph.graph), set(graph.state_dict())) == (before, state)


def test_the_certificate_finds_parts_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Editor.item
    monkeypatch.setattr(Editor, "item", lambda self, parts, number: take(self, parts, 1 - number))
    model = Model(branches, a=nn.Linear(3, 2), b=nn.Linear(3, 2)).double()
    graph, _ = optimize_graph(captured(model, randn(2, 3)), [])
    editor = MergeSiblings().run(graph)
    assert not editor.modified
    assert editor.refusals[0].reason.startswith("undone: relative error")


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(10))
@given(
    drawn=convolutions().filter(lambda pair: "Transpose" not in type(pair[0]).__name__),
    outputs=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    biased=st.lists(st.booleans(), min_size=4, max_size=4),
    active=st.lists(st.sampled_from(["relu", "sigmoid", "sin"]), min_size=4, max_size=4),
)
def test_merging_preserves(
    drawn: tuple[Any, Tensor], outputs: list[int], biased: list[bool], active: list[str]
) -> None:
    conv, x = drawn
    x = x[:, :1].repeat(1, 3, *(1,) * (x.ndim - 2))
    names = ("kernel_size", "stride", "padding", "dilation")
    geometry = {name: getattr(conv, name) for name in names}
    layers = {
        f"layer{number}": type(conv)(3, out, bias=bias, **geometry)
        for number, (out, bias) in enumerate(zip(outputs, biased, strict=False))
    }

    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(layers, active, strict=False)
        return tuple(getattr(torch, name)(getattr(m, layer)(x)) for layer, name in pairs)

    model, graph, editor = merge(forward, x, **layers)
    assert editor.modified or editor.refusals
    assert_agrees(graph, model, x)
    assert_idempotent(graph)
