"""Norms, scales and biases fold into the layer before them, and only where that is exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torchvision.ops.misc import FrozenBatchNorm2d

from passfx.graph.query import op_name
from passfx.graph.text import to_text
from passfx.passes.collapse import Collapse
from passfx.passes.fold_constants import FoldConstants
from passfx.pipeline import optimize_graph
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
from tests.passes.strategies import CONVS, Forms, Model, constants, convolutions, results, run

Function = Callable[..., Any]


def sequence(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.layer(x))


def layer(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- fires


class Before(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_a_norm_becomes_part_of_the_convolution() -> None:
    model, x = randomize(Before().double()), randn(2, 3, 7, 6)
    graph, editor = apply(Collapse(), model, x)
    assert_same_structure(graph, Expected().double(), x)
    assert len(editor.rewrites) == 1
    assert editor.rewrites[0].removed == ("conv2d", "batch_norm")
    assert editor.rewrites[0].module == "norm"
    assert set(constants(graph)) == {"conv.weight", "conv.bias"}
    assert_preserves(graph, model, [x])


LAYERS: list[tuple[type[nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, (4, 6, 3), {"groups": 2, "stride": 2, "dilation": 2}, (2, 4, 9)),
    (nn.Conv2d, (4, 6, 3), {"padding": 2, "dilation": 2}, (2, 4, 5, 6)),
    (nn.Conv3d, (2, 4, 2), {"padding": 1, "groups": 2}, (1, 2, 3, 4, 5)),
    (nn.ConvTranspose1d, (4, 6, 3), {"groups": 2, "stride": 2, "output_padding": 1}, (2, 4, 5)),
    (
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"groups": 2, "stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
        (2, 4, 4, 5),
    ),
    (
        nn.ConvTranspose3d,
        (4, 8, 2),
        {"groups": 4, "stride": 2, "dilation": 2, "output_padding": 1},
        (1, 4, 2, 3, 2),
    ),
    (nn.Linear, (4, 6), {}, (3, 4)),
]


@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), LAYERS)
def test_every_layer_takes_its_norm(kind: Any, sizes: Any, options: Any, shape: Any) -> None:
    x = randn(*shape)
    norm = CONVS.get(kind, nn.BatchNorm1d)(sizes[1])
    model = Model(sequence, layer=kind(*sizes, **options, bias=False), norm=norm).double()
    graph, editor = apply(Collapse(), randomize(model), x)
    assert_same_structure(graph, Model(layer, layer=kind(*sizes, **options)).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_norm_without_affine_parameters_folds() -> None:
    x, norm = randn(3, 4), nn.BatchNorm1d(6, affine=False)
    model = randomize(Model(sequence, layer=nn.Linear(4, 6, bias=False), norm=norm).double())
    graph, editor = apply(Collapse(), model, x)
    assert_same_structure(graph, Model(layer, layer=nn.Linear(4, 6)).double(), x)
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


ARITHMETIC: dict[str, Function] = {
    "scalar parameter": lambda m, x: m.layer(x) * m.scalar,
    "scalar parameter of shape [1]": lambda m, x: m.layer(x) * m.single,
    "mul a number": lambda m, x: m.layer(x) * 0.3,
    "mul an integer": lambda m, x: 3 * m.layer(x),
    "mul per channel": lambda m, x: m.layer(x) * m.channels,
    "mul per channel, left": lambda m, x: m.channels * m.layer(x),
    "mul integers per channel": lambda m, x: m.layer(x) * m.integers,
    "div a number": lambda m, x: m.layer(x) / 3,
    "div per channel": lambda m, x: m.layer(x) / m.channels,
    "div a scalar parameter": lambda m, x: m.layer(x) / m.scalar,
    "add a number": lambda m, x: 2.5 + m.layer(x),
    "add per channel": lambda m, x: m.layer(x) + m.channels,
    "add with alpha": lambda m, x: torch.add(m.layer(x), m.channels, alpha=3),
    "add with alpha, left": lambda m, x: torch.add(m.channels, m.layer(x), alpha=3),
    "add a number with alpha": lambda m, x: torch.add(m.layer(x), 2, alpha=3),
    "sub a number": lambda m, x: m.layer(x) - 0.7,
    "sub per channel": lambda m, x: m.layer(x) - m.channels,
    "sub with alpha": lambda m, x: torch.sub(m.layer(x), m.channels, alpha=0.5),
    "number - layer": lambda m, x: 1.5 - m.layer(x),
    "number - alpha · layer": lambda m, x: torch.rsub(m.layer(x), 1.5, alpha=2),
    "scalar parameter - layer": lambda m, x: m.scalar - m.layer(x),
    "per channel - layer": lambda m, x: m.channels - m.layer(x),
    "per channel - alpha · layer": lambda m, x: torch.sub(m.channels, m.layer(x), alpha=3),
    "per channel rsub": lambda m, x: torch.rsub(m.layer(x), m.channels, alpha=3),
    "rsub of per channel": lambda m, x: torch.rsub(m.channels, m.layer(x), alpha=3),
}


def arithmetic_parts(layer: nn.Module, *channels: int) -> Model:
    """The parts that the functions in ARITHMETIC read."""
    return Model(
        ARITHMETIC["mul per channel"],
        layer=layer.double(),
        scalar=nn.Parameter(torch.tensor(0.37, dtype=torch.float64)),
        single=nn.Parameter(torch.tensor([0.61], dtype=torch.float64)),
        channels=nn.Parameter(randn(*channels) + 3),
        integers=torch.arange(1, max(channels) + 1).reshape(channels),
    )


@dataclass(frozen=True)
class Folded:
    """All arithmetic forms, captured once and folded: each of them calls the same layer."""

    graph: GraphModule
    rewrites: int
    expected: GraphModule
    values: dict[str, Tensor]
    wanted: dict[str, Tensor]


@pytest.fixture(scope="module")
def arithmetic() -> Folded:
    torch.manual_seed(0)
    x = randn(2, 3, 5, 4)
    model = Forms(ARITHMETIC, arithmetic_parts(nn.Conv2d(3, 6, 3, padding=1), 6, 1, 1))
    graph, editor = apply(Collapse(), model, x)
    expected = captured(Forms(dict.fromkeys(ARITHMETIC, layer), model.parts), x).graph_module
    return Folded(graph, len(editor.rewrites), expected, run(graph, x), run(model, x))


def test_arithmetic_with_constants_leaves_layers_alone(arithmetic: Folded) -> None:
    assert to_text(arithmetic.graph) == to_text(arithmetic.expected)
    assert arithmetic.rewrites == len(ARITHMETIC)


@pytest.mark.parametrize("form", ARITHMETIC)
def test_arithmetic_with_constants_folds(arithmetic: Folded, form: str) -> None:
    node = results(arithmetic.graph)[list(ARITHMETIC).index(form)]
    assert op_name(node) == "conv2d"
    assert relative_error(arithmetic.values[form], arithmetic.wanted[form]) <= 1e-10


RANKS: dict[str, Function] = {
    "linear, a batch": lambda m, x: m.linear(x[0, 0]) * m.features,
    "linear, tokens": lambda m, x: m.linear(x[0]) * m.features,
    "linear, an image": lambda m, x: m.linear(x) * m.features,
    "conv, the constant names the batch axis": lambda m, x: m.conv(x) * m.channels[None],
}


def test_layer_scale_folds_at_every_rank() -> None:
    x = randn(2, 3, 6, 5)
    parts = Model(
        layer,
        linear=nn.Linear(5, 4),
        conv=nn.Conv2d(3, 4, 3),
        features=randn(4),
        channels=randn(4, 1, 1),
    ).double()
    model = Forms(RANKS, parts)
    graph, runs = optimize_graph(captured(model, x), [FoldConstants(), Collapse()])
    assert len(runs[1].rewrites) == len(RANKS)
    assert set(map(op_name, results(graph))) == {"linear", "conv2d"}
    for result, wanted in zip(run(graph, x).values(), run(model, x).values(), strict=True):
        assert relative_error(result, wanted) <= 1e-10


def test_a_linear_layer_of_one_vector_folds() -> None:
    model = Model(lambda m, x: m.layer(x) * 3, layer=nn.Linear(5, 4)).double()
    graph, editor = apply(Collapse(), model, x := randn(5))
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


def test_a_chain_folds_at_once() -> None:
    x = randn(2, 3, 5, 4)
    conv, norms = nn.Conv2d(3, 6, 3, bias=False), [nn.BatchNorm2d(6), nn.BatchNorm2d(6)]
    model = randomize(
        Model(
            lambda m, x: 1 - m.second(m.first(m.layer(x)) * m.scale) / 2,
            layer=conv,
            first=norms[0],
            second=norms[1],
            scale=torch.rand(6, 1, 1),
        ).double()
    )
    graph, editor = apply(Collapse(), model, x)
    assert_same_structure(graph, Model(layer, layer=nn.Conv2d(3, 6, 3)).double(), x)
    assert len(editor.rewrites) == 1
    assert set(constants(graph)) == {"layer.weight", "layer.bias"}
    assert_preserves(graph, model, [x])


def test_frozen_batch_norm_folds_once_its_constants_are_computed() -> None:
    x, norm = randn(2, 3, 5, 4), FrozenBatchNorm2d(6)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2.0)
    model = Model(sequence, layer=nn.Conv2d(3, 6, 3, bias=False), norm=norm).double()
    graph, runs = optimize_graph(captured(model, x), [FoldConstants(), Collapse()])
    assert_same_structure(graph, Model(layer, layer=nn.Conv2d(3, 6, 3)).double(), x)
    assert [len(run.rewrites) for run in runs] == [2, 1]
    assert_preserves(graph, model, [x])


def test_a_reused_convolution_gets_a_weight_for_each_norm() -> None:
    """torch.fx's own fuser writes into the shared weight: pytorch #104593, #197539."""
    x = randn(2, 3, 5, 4)
    model = randomize(
        Model(
            lambda m, x: m.second(m.conv(m.first(m.conv(x)))) + m.conv(x),
            conv=nn.Conv2d(3, 3, 3, padding=1),
            first=nn.BatchNorm2d(3),
            second=nn.BatchNorm2d(3),
        ).double()
    )
    before = {name: item.clone() for name, item in model.state_dict().items()}
    graph, editor = apply(Collapse(), model, x)
    assert ops(graph) == {"conv2d": 3, "add": 1}
    assert len(editor.rewrites) == 2
    weights = [item for name, item in constants(graph).items() if "weight" in name]
    assert len(weights) == 3
    assert sum(torch.equal(item, before["conv.weight"]) for item in weights) == 1
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
    assert_preserves(graph, model, [x])


def test_two_norms_of_one_convolution_that_is_called_twice() -> None:
    """Two inputs, one convolution, a norm for each input: nothing may be shared but the weight."""
    x, y = randn(2, 3, 5, 4), randn(2, 3, 4, 6)
    model = randomize(
        Model(
            lambda m, x, y: (m.first(m.conv(x)), m.second(m.conv(y))),
            conv=nn.Conv2d(3, 3, 3),
            first=nn.BatchNorm2d(3),
            second=nn.BatchNorm2d(3),
        ).double()
    )
    graph, editor = apply(Collapse(), model, x, y)
    assert ops(graph) == {"conv2d": 2}
    assert len(editor.rewrites) == 2
    with torch.no_grad():
        for result, wanted in zip(graph(x, y), model.eval()(x, y), strict=True):
            assert torch.allclose(result, wanted, rtol=1e-10, atol=1e-10)


def test_a_dynamic_batch_and_size_fold() -> None:
    x, dynamic = randn(2, 3, 7, 6), torch.export.Dim.DYNAMIC
    model = randomize(Before().double())
    graph, editor = apply(
        Collapse(), model, x, dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    assert len(editor.rewrites) == 1
    for shape in [(1, 3, 7, 6), (5, 3, 12, 3)]:
        assert_preserves(graph, model, [randn(*shape)])


# ------------------------------------------------------------------------------- refuses and keeps


def refusal(model: nn.Module, *inputs: Tensor) -> str:
    """The reason of the one refusal; nothing was rewritten."""
    _, editor = apply(Collapse(), model, *inputs)
    assert not editor.modified
    (found,) = editor.refusals
    return found.reason


def test_refuses_1_statistics_of_the_batch() -> None:
    model = Model(
        lambda m, x: functional.batch_norm(m.conv(x), None, None, training=True),
        conv=nn.Conv2d(3, 4, 3),
    )
    reason = "it normalises with the statistics of the batch"
    assert refusal(model, torch.randn(2, 3, 5, 5)) == reason


def test_refuses_1_a_norm_that_tracks_no_statistics() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = Model(sequence, layer=nn.Conv2d(3, 4, 3), norm=norm)
    reason = "it normalises with the statistics of the batch"
    assert refusal(model, torch.randn(2, 3, 5, 5)) == reason


def test_refuses_2_one_convolution_under_two_norms() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.first(y) * m.second(y)

    norms = {name: nn.BatchNorm2d(4) for name in ("first", "second")}
    model = randomize(Model(forward, conv=nn.Conv2d(3, 4, 3), **norms))
    graph, editor = apply(Collapse(), model, torch.randn(2, 3, 5, 5))
    assert [found.reason for found in editor.refusals] == [
        "conv2d is also read by batch_norm_1",
        "conv2d is also read by batch_norm",
    ]
    assert ops(graph) == {"conv2d": 1, "batch_norm": 2, "mul": 1}


def test_refuses_2_a_convolution_that_is_an_output_too() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, m.norm(y)

    model = randomize(Model(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    assert refusal(model, torch.randn(2, 3, 5, 5)) == "conv2d is also read by output"


def test_refuses_3_weights_computed_from_inputs() -> None:
    model = randomize(
        Model(lambda m, x, w: m.norm(functional.conv2d(x, w)), norm=nn.BatchNorm2d(4))
    )
    reason = "its weights or statistics are computed in the graph"
    assert refusal(model, torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)) == reason


def test_refuses_3_a_bias_computed_from_inputs() -> None:
    model = Model(lambda m, x, b: 2 * functional.linear(x, m.w, b), w=torch.randn(4, 3))
    reason = "its weights or statistics are computed in the graph"
    assert refusal(model, torch.randn(2, 3), torch.randn(4)) == reason


def test_refuses_3_statistics_computed_from_inputs() -> None:
    def norm(position: int) -> Function:
        def forward(m: Any, x: Tensor, computed: Tensor) -> Tensor:
            given = [m.mean, m.var, m.weight, m.bias]
            given[position] = computed
            return functional.batch_norm(m.conv(x), *given)

        return forward

    parts = {name: torch.rand(4) for name in ("mean", "var", "weight", "bias")}
    model = Forms(
        {str(n): norm(n) for n in range(4)}, Model(layer, conv=nn.Conv2d(3, 4, 3), **parts)
    )
    _, editor = apply(Collapse(), model, torch.randn(2, 3, 5, 5), torch.rand(4))
    assert not editor.modified
    assert [found.reason for found in editor.refusals] == [
        "its weights or statistics are computed in the graph"
    ] * 4


def test_refuses_5_a_weight_that_overflows() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 4000.0)
    model = Model(lambda m, x: m.conv(x) * 100, conv=conv).half()
    x = torch.full((1, 1, 2, 2), 1e-3, dtype=torch.float16)
    graph, editor = apply(Collapse(), model, x)
    assert not editor.modified
    (found,) = editor.refusals
    assert found.reason == "undone: a folded value overflows torch.float16"
    assert set(constants(graph)) == {"conv.weight"}
    assert run(graph, x).isfinite().all()


def test_a_weight_that_stays_in_range_folds_in_half_precision() -> None:
    model = Model(lambda m, x: m.conv(x) * 2, conv=nn.Conv2d(1, 2, 1)).half()
    graph, editor = apply(Collapse(), model, torch.ones(1, 1, 2, 2).half())
    assert len(editor.rewrites) == 1
    assert {item.dtype for item in constants(graph).values()} == {torch.float16}


KEPT: dict[str, Function] = {
    "4. a constant for each pixel": lambda m, x, y: m.conv(x) + m.table,
    "4. a constant along the width": lambda m, x, y: m.conv(x) * m.row,  # 4 wide, 4 channels
    "4. a constant for each token": lambda m, x, y: m.linear(x) * m.column,  # 4 tokens, 4 features
    "4. a constant that enlarges the channels": lambda m, x, y: m.single(x) * m.channels,
    "4. a constant that adds an axis": lambda m, x, y: m.single(x) * m.deep,
    "4. a constant that enlarges the batch": lambda m, x, y: m.single(x[:1]) + m.batch,
    "a quotient of the layer": lambda m, x, y: 2 / m.conv(x),
    "4. a norm over the tokens": lambda m, x, y: m.tokens(m.linear(x[0])),
    "4. a norm of an image without a batch axis": lambda m, x, y: m.rows(m.conv(x[0])),
    "4. an addition that promotes": lambda m, x, y: m.conv(x).float() + m.wide,
    "a division that rounds": lambda m, x, y: torch.div(m.conv(x), 0.1, rounding_mode="floor"),
    "the square of a layer": lambda m, x, y: m.square(m.conv(x)),
    "a factor computed from an input": lambda m, x, y: m.conv(x) * y,
    "a norm of something else": lambda m, x, y: m.norm(m.conv(x).relu()),
    "a rounding division of something else": lambda m, x, y: torch.div(
        x, 0.1, rounding_mode="floor"
    ),
}


def test_keeps_what_is_no_channel_step_of_a_layer() -> None:
    x, y = randn(2, 3, 4, 4), randn(4, 1, 1)
    parts = Model(
        layer,
        conv=nn.Conv2d(3, 4, 3, padding=1),
        wide=randn(4, 1, 1),
        tokens=nn.BatchNorm1d(4),
        rows=nn.BatchNorm1d(4),
        single=nn.Conv2d(3, 1, 1),
        linear=nn.Linear(4, 4),
        norm=nn.BatchNorm2d(4),
        table=randn(1, 4, 4, 4),
        row=randn(4),
        column=randn(4, 1),
        channels=randn(4, 1, 1),
        deep=randn(3, 1, 1, 1, 1),
        batch=randn(5, 1, 1, 1),
    ).double()
    parts.square = lambda y: y * y
    model = Forms(KEPT, randomize(parts))
    before = captured(model, x, y).graph_module
    graph, editor = apply(Collapse(), model, x, y)
    assert not editor.modified
    assert not editor.refusals
    assert to_text(graph) == to_text(before)


# --------------------------------------------------------------------------------------- preserves


@settings(deadline=None, max_examples=draws(12))
@given(case=convolutions(), affine=st.booleans(), eps=st.floats(1e-8, 1.0))
def test_norms_preserve(case: tuple[Any, Tensor], affine: bool, eps: float) -> None:
    conv, x = case
    norm = CONVS[type(conv)](conv.out_channels, affine=affine, eps=eps)
    model = randomize(Model(sequence, layer=conv, norm=norm).double(), seed=x.numel())
    graph, editor = apply(Collapse(), model, x)
    after = ops(graph)
    even = isinstance(conv.padding, str)  # "same" of an even kernel is a pad and a convolution
    assert sum(after.values()) - even * after["constant_pad_nd"] == 1
    assert len(editor.rewrites) == 1
    assert_preserves(graph, model, [x])


@settings(deadline=None, max_examples=draws(5))
@given(case=convolutions(dims=(1, 2)), forms=st.sets(st.sampled_from([*ARITHMETIC]), min_size=4))
def test_arithmetic_preserves(case: tuple[Any, Tensor], forms: set[str]) -> None:
    conv, x = case
    parts = arithmetic_parts(conv, conv.out_channels, *(1 for _ in conv.kernel_size))
    model = Forms({form: ARITHMETIC[form] for form in sorted(forms)}, parts)
    graph, editor = apply(Collapse(), model, x)
    assert len(editor.rewrites) == len(forms)
    for result, wanted in zip(run(graph, x).values(), run(model, x).values(), strict=True):
        assert relative_error(result, wanted) <= 1e-10


def test_a_gamma_of_zero_is_exact() -> None:
    x, model = randn(2, 3, 5, 5), Before().double()
    randomize(model)
    nn.init.zeros_(model.norm.weight)
    graph, _ = apply(Collapse(), model, x)
    wanted = model.norm.bias.detach().relu().reshape(1, 8, 1, 1).expand(2, 8, 3, 3)
    assert torch.equal(run(graph, x), wanted)


def test_a_gamma_of_zero_leaves_the_convolution_as_large_as_it_was() -> None:
    x, model = randn(2, 3, 9, 7), Before().double()
    nn.init.zeros_(randomize(model).norm.weight)
    graph, _ = apply(Collapse(), model, x)
    assert_same_structure(graph, Expected().double(), x)
    assert constants(graph)["conv.weight"].shape == model.conv.weight.shape


def test_a_tiny_variance_stays_accurate_in_float32() -> None:
    """All arithmetic is in float64 and rounded once, so the fold is the best float32 there is."""
    x, model = torch.randn(2, 3, 7, 7), randomize(Before())
    nn.init.uniform_(model.norm.running_var, 1e-7, 1e-6)
    graph, _ = apply(Collapse(), model, x)
    scale = model.norm.weight.double() / (model.norm.running_var.double() + model.norm.eps).sqrt()
    exact = model.conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    assert torch.equal(constants(graph)["conv.weight"], exact.float())


# -------------------------------------------------------------------------------------- idempotent


def test_a_second_run_rewrites_nothing(arithmetic: Folded) -> None:
    editor = Collapse().run(arithmetic.graph)
    assert not editor.modified
    assert not editor.refusals


def test_a_second_run_after_a_norm_rewrites_nothing() -> None:
    model, x = randomize(Before().double()), randn(2, 3, 7, 6)
    graph, _ = apply(Collapse(), model, x)
    assert not Collapse().run(graph).modified
    assert_preserves(graph, model, [x])
