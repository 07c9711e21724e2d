"""Composite operators that are written out become the operator, where that is exact."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from passfx.graph.text import to_text
from passfx.passes.fuse_composites import FuseComposites
from passfx.pipeline import run_passes
from passfx.target import CUDA
from passfx.verify.error import relative_error
from tests.helpers import apply, assert_same_structure, captured, draws, ops
from tests.passes.strategies import Forms, Model, run

Function = Callable[..., Any]
inf, slope = float("inf"), math.sqrt(2 / math.pi)
PARTS: dict[str, Tensor] = {
    "zero": torch.zeros(()),
    "six": torch.tensor(6.0),
    "root": torch.tensor(2.0).sqrt(),
    "rough_root": torch.tensor(2 / math.pi).sqrt(),  # a unit in the last place off
    "cubic": torch.tensor([0.044715]),
    "weight": torch.linspace(0.5, 2, 6),
    "bias": torch.linspace(-1, 1, 6),
    "high_weight": torch.linspace(0.5, 2, 6)[:, None, None],
    "high_bias": torch.linspace(-1, 1, 6)[:, None, None],
}

# ------------------------------------------------------------------------------------------- fires


class Before(nn.Module):
    """ConvNeXt's norm over the channels of an image, and a hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(6, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        y = self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias
        return y * functional.relu6(y + 3) / 6


class Expected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.permute(x, [0, 2, 3, 1])
        y = torch.layer_norm(y, [6], self.weight, self.bias, 1e-6)
        return functional.hardswish(torch.permute(y, [0, 3, 1, 2]))


def test_a_norm_and_an_activation_become_operators() -> None:
    model, x = Before(), torch.randn(2, 6, 5, 7)
    graph, editor = apply(FuseComposites(), model, x)
    assert_same_structure(graph, Expected(), x)
    what = {item.what for item in editor.rewrites}
    assert what == {"4 operators are hardswish", "10 operators are layer_norm"}
    torch.testing.assert_close(run(graph, x), run(model, x))


def softmax(x: Tensor, axis: int, largest: Tensor) -> Tensor:
    powers = (x - largest).exp()
    return powers / powers.sum(axis, keepdim=True)


def norm(x: Tensor, axis: Any = -1) -> Tensor:
    centred = x - x.mean(axis, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axis, keepdim=True) + 1e-5)


def by_variance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def logsumexp(x: Tensor) -> Tensor:
    largest = x.amax(1, keepdim=True)
    return largest + torch.log(torch.exp(x - largest).sum(1, keepdim=True))


def log_softmax(x: Tensor) -> Tensor:
    shifted = x - x.amax(1, keepdim=True)
    return shifted - shifted.exp().sum(1, keepdim=True).log()


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


# A form, and what becomes of it.
ACTIVATIONS: dict[str, tuple[Function, str]] = {
    "hardswish": (lambda m, x: x * functional.relu6(x + 3) / 6, "hardswish"),
    "hardswish, the gate first": (lambda m, x: functional.relu6(3 + x) / 6 * x, "hardswish"),
    "hardswish, a clip": (lambda m, x: x * torch.clip(x / 6 + 0.5, 0, 1), "hardswish"),
    "hardswish, a clamp": (lambda m, x: x * (x + 3).clamp(0, 6) * (1 / 6), "hardswish"),
    "hardswish, hardtanh": (lambda m, x: functional.hardtanh(x + 3, 0, 6).div(6) * x, "hardswish"),
    "hardswish, hardsigmoid": (lambda m, x: x * functional.hardsigmoid(x), "hardswish"),
    "hardswish, rounded": (lambda m, x: x * (functional.relu6(x + 3) * 0.16666667), "hardswish"),
    "hardswish, min and max": (
        lambda m, x: x * torch.minimum(torch.maximum(x + 3, m.zero), m.six) / 6,
        "hardswish",
    ),
    "hardsigmoid": (lambda m, x: functional.relu6(x + 3) / 6, "hardsigmoid"),
    "hardsigmoid, a clamp": (lambda m, x: (x / 6 + 0.5).clamp(0, 1), "hardsigmoid"),
    "sigmoid": (lambda m, x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "sigmoid, twice": (lambda m, x: 2 * torch.reciprocal(2 + 2 * (-x).exp()), "sigmoid"),
    "sigmoid, tanh": (lambda m, x: 0.5 * (torch.tanh(x / 2) + 1), "sigmoid"),
    "silu": (lambda m, x: x * torch.sigmoid(x), "silu"),
    "silu by hand": (lambda m, x: x / (1 + torch.exp(-x)), "silu"),
    "gelu": (lambda m, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "gelu, a product": (lambda m, x: 0.5 * x * (1 + torch.erf(x * 0.70710678)), "gelu"),
    "gelu, the gate": (lambda m, x: x * (0.5 + 0.5 * torch.erf(x / 1.4142135)), "gelu"),
    "gelu, a sum": (lambda m, x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2)), "gelu"),
    "gelu, erfc": (lambda m, x: x * torch.erfc(-x / math.sqrt(2)) / 2, "gelu"),
    "gelu, a tensor": (lambda m, x: x * 0.5 * (1 + torch.erf(x / m.root)), "gelu"),
    "gelu, tanh": (
        lambda m, x: 0.5 * x * (1 + torch.tanh(slope * (x + 0.044715 * x.pow(3)))),
        "gelu",
    ),
    "gelu, tanh, rounded": (
        lambda m, x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        "gelu",
    ),
    "gelu, tanh, tensors": (
        lambda m, x: x * (0.5 + 0.5 * torch.tanh(m.rough_root * (x + m.cubic * x**3))),
        "gelu",
    ),
    "gelu, sigmoid": (
        lambda m, x: x * torch.sigmoid(2 * slope * (x + 0.044715 * x * x.square())),
        "gelu",
    ),
    "mish": (lambda m, x: torch.tanh(functional.softplus(x)) * x, "mish"),
    "relu, a clamp": (lambda m, x: x.clamp(min=0), "relu"),
    "relu, a maximum": (lambda m, x: torch.maximum(m.zero, x), "relu"),
    "relu, zeros": (lambda m, x: torch.max(x, torch.zeros_like(x)), "relu"),
    "leaky_relu": (lambda m, x: torch.max(x, 0.1 * x), "leaky_relu"),
    "leaky_relu, where": (lambda m, x: torch.where(x > 0, x, 0.1 * x), "leaky_relu"),
    "leaky_relu, less": (lambda m, x: torch.where(x < 0, 1.5 * x, x), "leaky_relu"),
    "leaky_relu, at least": (lambda m, x: torch.where(x >= 0, x, x * 0.2), "leaky_relu"),
    "leaky_relu, two relus": (lambda m, x: x.relu() - 0.3 * (-x).relu(), "leaky_relu"),
    "elu": (lambda m, x: torch.where(x > 0, x, torch.exp(x) - 1), "elu"),
    "elu of another height": (lambda m, x: torch.where(x <= 0, 1.5 * (x.exp() - 1), x), "elu"),
}
OVER_AXES: dict[str, tuple[Function, str]] = {
    "softmax": (lambda m, x: softmax(x, 1, x.amax(1, keepdim=True)), "softmax"),
    "softmax, max": (lambda m, x: softmax(x, -1, x.max(-1, keepdim=True)[0]), "softmax"),
    "softmax, unsqueeze": (lambda m, x: softmax(x, 2, x.amax(2).unsqueeze(2)), "softmax"),
    "log_softmax": (lambda m, x: x - x.logsumexp(1, keepdim=True), "log_softmax"),
    "log_softmax by hand": (lambda m, x: log_softmax(x), "log_softmax"),
}
NORMS: dict[str, tuple[Function, str]] = {
    "layer_norm": (lambda m, x: norm(x), "layer_norm"),
    "layer_norm, weight, bias": (lambda m, x: m.bias + norm(x) * m.weight, "layer_norm"),
    "layer_norm, var": (
        lambda m, x: (
            m.weight * by_variance(x, x.mean(-1, True), x.var(-1, unbiased=False, keepdim=True))
        ),
        "layer_norm",
    ),
    "layer_norm, var_mean": (
        lambda m, x: (
            by_variance(x, *reversed(torch.var_mean(x, -1, keepdim=True, correction=0))) + m.bias
        ),
        "layer_norm",
    ),
    "layer_norm, squares": (
        lambda m, x: by_variance(
            x, x.mean(-1, True), x.square().mean(-1, True) - x.mean(-1, True) ** 2
        ),
        "layer_norm",
    ),
    "layer_norm of two axes": (lambda m, x: norm(x, (2, 3)), "layer_norm"),
    "layer_norm over channels": (
        lambda m, x: m.high_weight * norm(x, 1) + m.high_bias,
        "layer_norm",
    ),
    "layer_norm, then weight, bias": (
        lambda m, x: functional.layer_norm(x, (6,)) * m.weight + m.bias,
        "layer_norm",
    ),
    "rms_norm": (lambda m, x: root_mean_square(x), "rms_norm"),
    "rms_norm, weight": (lambda m, x: m.weight * root_mean_square(x), "rms_norm"),
    "rms_norm, root": (
        lambda m, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * m.weight,
        "rms_norm",
    ),
    "rms_norm, power": (
        lambda m, x: x * (x.square().mean(-1, True) + 1e-6).pow(-0.5) * m.weight,
        "rms_norm",
    ),
}
SPECIAL = [0.0, -0.0, 3.0, -3.0, 1e-30, 1e30, -1e30, 20.0, -90.0, inf, -inf, float("nan")]


def assert_fires(forms: dict[str, tuple[Function, str]], x: Tensor) -> None:
    parts = Model(lambda m: None, **PARTS)
    model = Forms({name: form for name, (form, _) in forms.items()}, parts)
    graph, editor = apply(FuseComposites(), model, x)
    assert not editor.refusals
    found, wanted = run(graph, x), run(model, x)
    for name, result in found.items():
        if "gelu" in name:  # whose kernel in torch makes NaN of infinity
            result = torch.where(x == inf, inf, result)
        torch.testing.assert_close(result, wanted[name], rtol=2e-5, atol=2e-6, equal_nan=True)
    written = [item.what for item in editor.rewrites]
    assert len(written) == len(forms)
    fused = {op.removesuffix(" by tanh") for op in ops(graph)}
    assert fused <= {op for _, op in forms.values()} | {"permute", "add", "div"}
    again = FuseComposites().run(graph)
    assert not again.modified


def test_activations() -> None:
    assert_fires(ACTIVATIONS, torch.cat([torch.randn(200) * 4, torch.tensor(SPECIAL)])[None])


def test_functions_over_axes() -> None:
    assert_fires(OVER_AXES, torch.randn(3, 6, 4) * 90)


def test_norms() -> None:
    assert_fires(NORMS, torch.randn(2, 6, 4, 6) * 3 + 1)


ON_A_GPU: dict[str, tuple[Function, str, str]] = {
    "mish": (lambda m, x: x * torch.tanh(torch.log(1 + torch.exp(x))), "mish", "Softplus"),
    "logsumexp": (lambda m, x: logsumexp(x), "logsumexp", "ReduceLogSumExp"),
    "norm of vectors": (
        lambda m, x: (x * x).sum(1, keepdim=True).sqrt(),
        "linalg_vector_norm",
        "ReduceL2",
    ),
}


@pytest.mark.parametrize("name", ON_A_GPU)
def test_what_is_slower_on_a_cpu_is_one_operator_on_a_gpu_alone(name: str) -> None:
    form, op, slow = ON_A_GPU[name]
    model, x = Model(form), torch.randn(5, 6) * 50
    graph, _ = apply(FuseComposites(CUDA), model, x)
    assert ops(graph) == {op: 1}
    torch.testing.assert_close(run(graph, x), run(model, x))
    graph, editor = apply(FuseComposites(), model, x)
    assert not editor.modified
    reason = f"ONNX Runtime's {slow} takes longer on a CPU"
    assert reason in {item.reason for item in editor.refusals}


def test_a_norm_leaves_the_scale_of_an_activation_before_it() -> None:
    """It would be the same norm of six times as much."""
    model = Model(lambda m, x: norm(x * functional.relu6(x + 3) / 6))
    graph, _ = apply(FuseComposites(), model, x := torch.randn(4, 6))
    assert ops(graph) == {"hardswish": 1, "layer_norm": 1}
    torch.testing.assert_close(run(graph, x), run(model, x))


def test_the_largest_form_wins() -> None:
    """A gate that is read twice stays, and what it is made of is named."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = 1 / (1 + torch.exp(-x))
        return x * gate, gate + 1

    graph, editor = apply(FuseComposites(), Model(forward), torch.randn(4))
    assert ops(graph) == {"sigmoid": 1, "mul": 1, "add": 1}
    (refusal,) = editor.refusals
    assert refusal.reason.endswith("a part of silu, is also read by others")


# ------------------------------------------------------------------------------- refuses and keeps

OVERFLOWS = "exp overflows for large values, where {} does not"
NEAR = "it is {} but for a number that is off by more than rounding"
COUNTED = "the variance is divided by n − 1, that of a layer norm by n"
OUTSIDE = "the number that keeps it from dividing by zero is added outside of the root"
REFUSED: dict[str, tuple[Function, str]] = {
    "2. gelu": (lambda m, x: x * 0.5 * (1 + torch.erf(x / 1.41421)), NEAR.format("gelu")),
    "2. gelu, tanh": (
        lambda m, x: 0.5 * x * (1 + torch.tanh(0.797885 * (x + 0.044715 * x**3))),
        NEAR.format("gelu by tanh"),
    ),
    "2. hardsigmoid": (
        lambda m, x: torch.clamp(x * 0.166667 + 0.5, 0, 1),
        NEAR.format("hardsigmoid"),
    ),
    "3. softmax": (
        lambda m, x: x.exp() / x.exp().sum(1, keepdim=True),
        f"{OVERFLOWS.format('softmax')}; subtract the maximum first",
    ),
    "3. softmax, the largest of all": (
        lambda m, x: softmax(x, 1, x.max()),
        f"{OVERFLOWS.format('softmax')}; subtract the maximum first",
    ),
    "3. softplus": (lambda m, x: torch.log(1 + x.exp()), OVERFLOWS.format("softplus")),
    "5. a short RMS norm": (
        lambda m, x: x / ((x * x).mean(-1, True) + 1e-6).sqrt(),
        "it is 5 operators, and would be 6",
    ),
    "4. n − 1": (
        lambda m, x: by_variance(x, x.mean(-1, True), x.var(-1, keepdim=True)),
        COUNTED,
    ),
    "4. n − 1, outside": (
        lambda m, x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6),
        COUNTED,
    ),
    "4. outside": (
        lambda m, x: (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + 1e-6),
        OUTSIDE,
    ),
}
KEPT: dict[str, Function] = {
    "5. an RMS norm over channels": lambda m, x: x / (x.pow(2).mean(0, True) + 1e-6).sqrt(),
    "6. relu by comparison": lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
    "another slope": lambda m, x: x * torch.sigmoid(1.702 * x),
    "another hardsigmoid": lambda m, x: (x * 0.2 + 0.5).clamp(0, 1),
    "a maximum of the steeper": lambda m, x: torch.max(x, 2 * x),
    "two values": lambda m, x: x * torch.sigmoid(x.flip(0)),
    "a weight a sample": lambda m, x: functional.layer_norm(x, (6,)) * m.column,
    "integers": lambda m, x: x.long().clamp(min=0),
    "the operator itself": lambda m, x: functional.gelu(x).relu(),
    "x/x": lambda m, x: x / x,
    "√x²": lambda m, x: x.square().sqrt(),
}


def test_refuses() -> None:
    for name, (form, reason) in REFUSED.items():
        model, x = Model(form), torch.randn(5, 6)
        graph, editor = apply(FuseComposites(), model, x)
        assert not editor.modified, name
        assert reason in {item.reason for item in editor.refusals}, name
        assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_keeps() -> None:
    parts = Model(lambda m: None, column=torch.randn(5, 1), **PARTS)
    model, x = Forms(KEPT, parts), torch.randn(5, 6)
    graph, editor = apply(FuseComposites(), model, x)
    assert not editor.modified, editor.rewrites
    assert not editor.refusals
    assert to_text(graph) == to_text(captured(model, x).graph_module)


def test_a_formula_that_grows_without_end_is_given_up() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(60):
            x = x * (x + 1.5) - x.tanh() * x
        return x

    _, editor = apply(FuseComposites(), Model(forward), torch.randn(3))
    assert not editor.modified


def test_a_number_is_taken_for_a_rounding_in_its_own_dtype() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 1.4142135))

    single, editor = apply(FuseComposites(), Model(forward), torch.randn(3))
    assert ops(single) == {"gelu": 1}
    _, editor = apply(FuseComposites(), Model(forward), torch.randn(3, dtype=torch.float64))
    assert not editor.modified
    assert {item.reason for item in editor.refusals} == {NEAR.format("gelu")}


# --------------------------------------------------------------------------- preserves, idempotent

EXACT = {
    name: form
    for name, (form, _) in (ACTIVATIONS | OVER_AXES | NORMS).items()
    if not any(word in name for word in ("rounded", "tensor", "product", "the gate", "tanh"))
    and "two axes" not in name
}


@settings(deadline=None, max_examples=draws(4))
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(2, 5)),
    names=st.lists(st.sampled_from(sorted(EXACT)), min_size=3, max_size=5, unique=True),
    width=st.sampled_from([0.1, 3.0, 40.0]),
    dynamic=st.booleans(),
)
def test_preserves(sizes: tuple[int, int], names: list[str], width: float, dynamic: bool) -> None:
    parts = Model(lambda m: None, **PARTS).double()
    model = Forms({name: EXACT[name] for name in names}, parts)
    x = torch.randn(max(2, sizes[0]), 6, sizes[1], 6, dtype=torch.float64) * width
    options = {"dynamic_shapes": [({0: torch.export.Dim.DYNAMIC},)]} if dynamic else {}
    program = captured(model, x, **options)
    graph = program.graph_module
    run_passes(graph, [FuseComposites()])
    for name, wanted in run(model, x).items():
        assert relative_error(run(graph, x)[name], wanted) < 1e-9, name
    assert not FuseComposites().run(graph).modified


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_floating_types(dtype: torch.dtype) -> None:
    model, x = Before().to(dtype), torch.randn(2, 6, 3, 4).to(dtype)
    graph, _ = apply(FuseComposites(), model, x)
    assert ops(graph) == {"permute": 2, "layer_norm": 1, "hardswish": 1}
    assert run(graph, x).dtype == dtype
    torch.testing.assert_close(run(graph, x), run(model, x), rtol=0.05, atol=0.05)
