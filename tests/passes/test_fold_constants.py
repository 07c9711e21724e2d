"""Constant expressions are computed once, in float64, and rounded once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from passfx.analysis.cost import graph_cost
from passfx.graph.text import to_text
from passfx.passes.fold_constants import FoldConstants
from passfx.pipeline import optimize_graph
from tests.helpers import apply, assert_preserves, assert_same_structure, captured, ops
from tests.passes.strategies import Forms, Model, constants, run

Function = Callable[..., Any]
inf = float("inf")


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- fires


class StandardizedConv2d(nn.Conv2d):
    """Weight standardisation (arXiv:1903.10520), as timm's StdConv2d computes it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6
        ).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class ScaledConv2d(nn.Conv2d):
    """Scaled weight standardisation (NF-nets, arXiv:2101.08692)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        scale = torch.rsqrt((var * self.weight[0].numel()).clamp(min=1e-4)) * self.gain
        return functional.conv2d(x, (self.weight - mean) * scale, self.bias)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "weight_norm of all": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3), dim=None),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    "standardised": lambda: StandardizedConv2d(3, 4, 3),
    "scaled standardised": lambda: ScaledConv2d(3, 4, 3),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_reparametrised_convolution_becomes_a_plain_one(kind: str) -> None:
    model, x = Model(lambda m, x: m.conv(x).relu(), conv=LAYERS[kind]()).double(), randn(2, 3, 5, 6)
    graph, editor = apply(FoldConstants(), model, x)
    expected = Model(model.function, conv=nn.Conv2d(3, 4, 3)).double()
    assert_same_structure(graph, expected, x)
    assert len(editor.rewrites) == 1
    assert editor.rewrites[0].what.endswith(" operators on constants")
    assert len(constants(graph)) == 2
    assert {name.rpartition(".")[2] for name in constants(graph)} == {"weight", "bias"}
    assert_preserves(graph, model, [x])


def sines(m: Any, x: Tensor) -> Tensor:
    position = torch.arange(7, dtype=x.dtype)[:, None]
    frequency = torch.exp(torch.arange(0, 8, 2, dtype=x.dtype) * -(9.21 / 8))
    return x + torch.cat([(position * frequency).sin(), (position * frequency).cos()], 1)


FORMS: dict[str, tuple[Function, tuple[int, ...], torch.dtype]] = {
    "a table of sines": (sines, (7, 8), torch.float64),
    "a table of quotients of integers": (
        lambda m, x: x * (torch.arange(8) / 7),
        (8,),
        torch.float64,
    ),
    "integers": (lambda m, x: x[torch.arange(7).flip(0) // 2], (7,), torch.int64),
    "a mask": (
        lambda m, x: torch.where(torch.ones(7, 8).bool().tril(), x, 0.0),
        (7, 8),
        torch.bool,
    ),
    "a mask of infinities": (
        lambda m, x: (x @ x.T + torch.full((7, 7), -inf).triu(1)).softmax(-1),
        (7, 7),
        torch.float64,
    ),
    "a token": (lambda m, x: x + m.token.expand(7, -1) * 2, (7, 8), torch.float64),
    "a transposed weight": (lambda m, x: x @ m.weight.t(), (8, 4), torch.float64),
}


@pytest.fixture(scope="module", autouse=True)
def _double() -> Any:
    """Tables without a dtype of their own are made in float64, to compare them tightly."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("form", FORMS)
def test_tables_and_masks_become_tensors(form: str) -> None:
    function, shape, dtype = FORMS[form]
    model, x = Model(function, token=randn(1, 8), weight=randn(4, 8)), randn(7, 8)
    graph, editor = apply(FoldConstants(), model, x)
    (rewrite,) = editor.rewrites
    assert rewrite.error == 0
    (table,) = (item for item in constants(graph).values() if tuple(item.shape) == shape)
    assert table.dtype == dtype
    assert_preserves(graph, model, [x], tolerance=1e-14)
    assert all("arange" not in line and "full" not in line for line in to_text(graph).splitlines())


def test_an_expression_that_two_operators_read_is_computed_once() -> None:
    model = Model(lambda m, x: x * m.a.exp() + (x - m.a.exp().sin()), a=randn(3))
    graph, editor = apply(FoldConstants(), model, x := randn(2, 3))
    assert ops(graph) == {"mul": 1, "sub": 1, "add": 1}
    assert len(editor.rewrites) == 2
    assert_preserves(graph, model, [x], tolerance=1e-14)


def test_every_part_of_a_split_constant_is_folded() -> None:
    model = Model(lambda m, x: x * m.a.chunk(2)[0] + m.a.chunk(2)[1], a=randn(4))
    graph, editor = apply(FoldConstants(), model, x := randn(3, 2))
    assert ops(graph) == {"mul": 1, "add": 1}
    assert len(editor.rewrites) == 2
    assert_preserves(graph, model, [x], tolerance=1e-14)


def test_a_constant_result_is_folded() -> None:
    model = Model(lambda m, x: (x.sin(), m.a.sin()), a=randn(4))
    graph, editor = apply(FoldConstants(), model, randn(3))
    assert ops(graph) == {"sin": 1}
    assert len(editor.rewrites) == 1
    assert torch.equal(run(graph, randn(3))[1], model.a.sin())


def test_the_model_keeps_its_own_weights() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    before = {name: item.clone() for name, item in conv.state_dict().items()}
    apply(FoldConstants(), conv, randn(2, 3, 5, 5))
    assert conv.state_dict().keys() == before.keys()
    assert all(torch.equal(item, before[name]) for name, item in conv.state_dict().items())


# ------------------------------------------------------------------------------- refuses and keeps


def test_keeps_1_random_operators() -> None:
    """Capture refuses them, so the graph is changed here."""
    model = Model(lambda m, x: x * m.p.sin().cos(), p=torch.tensor(0.5))
    graph, _ = optimize_graph(captured(model, randn(3)), [])
    (node,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    node.target = torch.ops.aten.bernoulli.default
    editor = FoldConstants().run(graph)
    assert not editor.modified
    assert ops(graph) == {"bernoulli": 1, "cos": 1, "mul": 1}


def test_refuses_2_an_expression_that_would_grow_the_file() -> None:
    model = Model(lambda m, x: torch.cat([m.token.expand(300, 1, 512), x], 1), token=randn(1, 512))
    graph, editor = apply(FoldConstants(), model, randn(300, 1, 512))
    assert not editor.modified
    (found,) = editor.refusals
    assert found.reason == "would make the file 1.2 MB larger to save 26.7 µs"
    assert ops(graph) == {"expand": 1, "cat": 1}


def test_folds_an_expression_that_grows_a_little() -> None:
    model = Model(lambda m, x: torch.cat([m.token.expand(3, 1, 512), x], 1), token=randn(1, 512))
    _, editor = apply(FoldConstants(), model, randn(3, 1, 512))
    assert len(editor.rewrites) == 1


class Packed(nn.Module):
    """Linear layers of 8-bit weights, as quantisation of weights alone writes them."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        for n in range(count):
            self.register_buffer(f"w{n}", torch.randint(-127, 127, (size, size)).to(torch.int8))
            self.register_buffer(f"scale{n}", torch.rand(size, 1) / 100)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for n in range(self.count):
            weight = getattr(self, f"w{n}").to(x.dtype) * getattr(self, f"scale{n}")
            x = functional.linear(x, weight).relu()
        return x


def test_refuses_2_to_unpack_weights() -> None:
    graph, editor = apply(FoldConstants(), Packed(3, 64), randn(1, 64))
    assert not editor.modified
    assert {found.reason for found in editor.refusals} == {
        "would make the file 28.2 kB larger to save 0.0 µs"
    }
    assert graph_cost(graph).weight_bytes == 3 * (64 * 64 + 64 * 8)


def test_an_expression_that_is_written_twice_is_weighed_once() -> None:
    """Two calls of a layer compute one weight: the file does not grow, once both are folded."""
    model = Model(lambda m, x: (x @ (m.a * m.b)).sin() @ (m.a * m.b), a=randn(90, 90), b=randn(90))
    graph, editor = apply(FoldConstants(), model, x := randn(1, 90))
    assert len(editor.rewrites) == 2
    assert ops(graph) == {"matmul": 2, "sin": 1}
    assert_preserves(graph, model, [x], tolerance=1e-13)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + ((m.a + 1e8) - 1e8),
        lambda m, x: x + (m.a * 1e30) ** 2 * 1e-30 * 1e-30,
        lambda m, x: torch.where(m.a / 3 * 3 == m.a, x, 0.0),
        lambda m, x: x * (m.a * 16777217).long(),
    ],
    ids=["cancellation", "overflow", "comparison", "rounding to integers"],
)
def test_refuses_3_a_value_that_depends_on_its_precision(function: Function) -> None:
    model = Model(function, a=torch.linspace(0.1, 3, 50, dtype=torch.float32))
    graph, editor = apply(FoldConstants(), model, x := torch.randn(50, dtype=torch.float32))
    assert not editor.modified
    assert "its value depends on the precision that it is computed in" in {
        found.reason for found in editor.refusals
    }
    assert torch.equal(run(graph, x), run(model, x))


def test_keeps_what_reads_an_input() -> None:
    model = Model(lambda m, x: (x.sin() + m.a) * torch.zeros_like(x[:1]), a=randn(3))
    graph, editor = apply(FoldConstants(), model, randn(3))
    assert not editor.refusals
    assert ops(graph)["sin"] == ops(graph)["add"] == 1


def test_keeps_a_table_of_a_dynamic_size() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0])[:, None] * 2

    shapes = {"inputs": ({0: torch.export.Dim.DYNAMIC},)}
    graph, editor = apply(FoldConstants(), Model(forward), randn(4, 3), dynamic_shapes=shapes)
    assert not editor.modified
    assert_preserves(graph, Model(forward), [randn(9, 3)])


def test_keeps_constants_themselves() -> None:
    model = Model(lambda m, x: m.layer(x), layer=nn.Linear(3, 3))
    graph, editor = apply(FoldConstants(), model, x := randn(2, 3))
    assert not editor.modified
    assert to_text(graph) == to_text(captured(model, x).graph_module)


# --------------------------------------------------------------------------------------- preserves


def chain(m: Any, x: Tensor) -> Tensor:
    table = m.a
    for _ in range(20):
        table = (table * 1.1 + 0.3).sin() / 0.7
    return x * table


def test_a_long_chain_is_rounded_once() -> None:
    model = Model(chain, a=torch.randn(500, dtype=torch.float32))
    graph, editor = apply(FoldConstants(), model, torch.ones(500, dtype=torch.float32))
    assert len(editor.rewrites) == 1
    (table,) = constants(graph).values()
    exact = chain(Model(chain, a=model.a.double()), torch.ones(500))
    assert table.dtype == torch.float32
    assert torch.equal(table, exact.float())
    assert not torch.equal(table, chain(model, torch.ones(500, dtype=torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    model = Model(lambda m, x: x * (m.a.exp() * 3 + 1), a=torch.rand(100).to(dtype))
    graph, _ = apply(FoldConstants(), model, torch.ones(100).to(dtype))
    (table,) = constants(graph).values()
    assert torch.equal(table, (model.a.double().exp() * 3 + 1).to(dtype))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * (torch.arange(50) / 7).sqrt(),
        lambda m, x: x * torch.linspace(0, 1, 50) ** 2,
        lambda m, x: x * (torch.full((50,), 0.1) * 3),
    ],
    ids=["integers divided", "linspace", "full"],
)
def test_tables_without_a_dtype_are_rounded_once(function: Function) -> None:
    """In a float32 model these are float32; in the fold they are float64 until the end."""
    torch.set_default_dtype(torch.float32)
    try:
        graph, _ = apply(FoldConstants(), Model(function), torch.ones(50))
    finally:
        torch.set_default_dtype(torch.float64)
    (table,) = constants(graph).values()
    assert table.dtype == torch.float32
    assert torch.equal(table, function(None, torch.ones(50)).float())


STEPS: dict[str, Function] = {
    "mul": lambda t, n: t * n,
    "add": lambda t, n: n + t,
    "div": lambda t, n: t / n,
    "sin": lambda t, n: t.sin(),
    "softmax": lambda t, n: t.softmax(-1),
    "transpose": lambda t, n: t.mT.contiguous(),
    "matmul": lambda t, n: t @ t,
    "mean": lambda t, n: t - t.mean(0, keepdim=True),
    "cat": lambda t, n: torch.cat([t[:1], t[1:] * n]),
    "where": lambda t, n: torch.where(t > 0, t, n),
}


@settings(deadline=None, max_examples=5)
@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.sampled_from([*STEPS]), st.sampled_from([0.3, 1.7, 2, -1.5])),
            min_size=1,
            max_size=6,
        ),
        min_size=3,
        max_size=6,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_expressions_preserve(rows: list[list[tuple[str, float]]], seed: int) -> None:
    def form(row: list[tuple[str, float]]) -> Function:
        def forward(m: Any, x: Tensor) -> Tensor:
            table = m.a
            for kind, number in row:
                table = STEPS[kind](table, number)
            return x @ table

        return forward

    torch.manual_seed(seed)
    model = Forms({str(n): form(row) for n, row in enumerate(rows)}, Model(chain, a=randn(4, 4)))
    graph, editor = apply(FoldConstants(), model, x := randn(2, 4))
    assert ops(graph) == {"matmul": len(rows)}
    assert len(editor.rewrites) == len(rows)
    wanted = run(model, x)
    for name, result in run(graph, x).items():
        assert torch.allclose(result, wanted[name], rtol=1e-10, atol=1e-10)
    assert not FoldConstants().run(graph).modified


# -------------------------------------------------------------------------------------- idempotent


def test_a_second_run_rewrites_nothing() -> None:
    functions = {name: function for name, (function, _, _) in FORMS.items()}
    model = Forms(functions, Model(chain, token=randn(1, 8), weight=randn(4, 8)))
    graph, editor = apply(FoldConstants(), model, randn(7, 8))
    assert len(editor.rewrites) == len(FORMS)
    assert not FoldConstants().run(graph).modified


def test_transpose_of_a_shared_weight_is_kept() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(1000, 512)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.embedding(tokens) @ self.embedding.weight.t()

    _, editor = apply(FoldConstants(), Tied(), torch.tensor([[1, 2, 3]]))
    assert editor.rewrites == []
    assert [item.reason for item in editor.refusals] == [
        "would make the file 4.1 MB larger to save 0.0 µs"
    ]
