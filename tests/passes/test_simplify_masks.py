"""Masks that are known before a run are dropped, or said in a shorter way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from passfx.graph.query import arguments, is_constant, operators
from passfx.graph.text import to_text
from passfx.passes.simplify_masks import SimplifyMasks
from tests.helpers import apply, assert_preserves, assert_same_structure, captured, draws
from tests.passes.strategies import Model, results, run

Function = Callable[..., Any]


def attention(m: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, m.mask)


def inputs(length: int = 5, keys: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 3, size, 4, dtype=dtype) for size in (length, keys, keys)]


# ------------------------------------------------------------------------------------------- fires


PLAIN = Model(lambda m, *inputs: functional.scaled_dot_product_attention(*inputs))
CAUSAL = Model(lambda m, *inputs: functional.scaled_dot_product_attention(*inputs, is_causal=True))
FULL = {
    "two axes": torch.ones(5, 5, dtype=torch.bool),
    "a column": torch.ones(1, 1, 5, 1, dtype=torch.bool),
    "every head": torch.ones(2, 3, 5, 5, dtype=torch.bool),
    "zeros that are added": torch.zeros(5, 5),
}


@pytest.mark.parametrize("name", FULL)
def test_a_mask_that_hides_nothing_goes(name: str) -> None:
    model, given = Model(attention, mask=FULL[name]), inputs()
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert len(editor.rewrites) == 1
    assert_same_structure(graph, PLAIN, *given)
    torch.testing.assert_close(run(graph, *given), run(model, *given))
    assert not SimplifyMasks().run(graph).modified


@pytest.mark.parametrize(
    ("mask", "is_kept"),
    [
        (torch.ones(1, 1, 5, 5, dtype=torch.bool), False),
        (torch.zeros(5, 5), False),
        (torch.ones(5, 5).tril(1).bool(), True),
        (torch.ones(5, 5), True),
    ],
)
def test_the_scale_stays_whether_a_mask_goes_or_not(mask: Tensor, is_kept: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.mask.expand(2, -1, -1, -1) if m.mask.ndim == 4 else m.mask
        return functional.scaled_dot_product_attention(x, x + 1, x * 2, hidden, scale=0.3)

    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    model = Model(forward, mask=mask).double()
    graph, _ = apply(SimplifyMasks(), model, x)
    (attention,) = (node for node in operators(graph) if "attention" in node.name)
    assert (len(attention.all_input_nodes) == 4) == is_kept
    assert attention.kwargs["scale"] == 0.3
    assert_preserves(graph, model, [x])


def test_a_mask_that_is_expanded_to_a_batch_of_any_size_goes() -> None:
    def forward(m: Any, query: Tensor) -> Tensor:
        mask = m.mask.expand(query.shape[0], -1, 5, 5)
        return functional.scaled_dot_product_attention(query, query, query, mask)

    model, (x, *_) = Model(forward, mask=torch.ones(1, 1, 5, 1, dtype=torch.bool)), inputs()
    dynamic = [({0: torch.export.Dim.DYNAMIC},)]
    graph, editor = apply(SimplifyMasks(), model, x, dynamic_shapes=dynamic)
    assert [item.what for item in editor.rewrites] == ["the mask hides nothing"]
    for size in (1, 3):
        x = torch.randn(size, 3, 5, 4)
        torch.testing.assert_close(run(graph, x), run(model, x))


@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5)])
def test_a_mask_of_what_comes_later_becomes_causal(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape, dtype=torch.bool).tril()
    model, given = Model(attention, mask=mask), inputs()
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert [item.what for item in editor.rewrites] == ["the mask hides what comes later"]
    assert_same_structure(graph, CAUSAL, *given)
    torch.testing.assert_close(run(graph, *given), run(model, *given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_another_mask_is_added(dtype: torch.dtype) -> None:
    mask = torch.ones(4, 6, dtype=torch.bool).tril(1)
    model, given = Model(attention, mask=mask), inputs(4, 6, dtype)
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert [item.what for item in editor.rewrites] == ["the mask is added"]
    added = arguments(results(graph)[0])["attn_mask"]
    assert is_constant(added)
    assert added.meta["val"].dtype == dtype
    torch.testing.assert_close(run(graph, *given), run(model, *given))
    assert not SimplifyMasks().run(graph).modified


def test_a_mask_of_keys_alone_is_added() -> None:
    mask = torch.tensor([True, True, False, True, True]).expand(5, 5)
    model, given = Model(attention, mask=mask), inputs()
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert editor.modified
    torch.testing.assert_close(run(graph, *given), run(model, *given))


# ------------------------------------------------------------------------------- refuses and keeps


def assert_kept(model: nn.Module, *given: Tensor) -> Any:
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert not editor.modified
    assert to_text(graph) == to_text(captured(model, *given).graph_module)
    return editor.refusals


def test_keeps_1_a_mask_that_depends_on_an_input() -> None:
    def forward(m: Any, x: Tensor, kept: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x, kept[:, None, None, :])

    x, *_ = inputs()
    assert not assert_kept(Model(forward), x, torch.ones(2, 5, dtype=torch.bool))


def test_refuses_2_a_mask_that_hides_a_whole_row() -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    (refusal,) = assert_kept(Model(attention, mask=mask), *inputs())
    assert refusal.reason == "the mask hides a whole row, of which softmax would make NaN"


def test_keeps_a_mask_that_adds_something_and_attention_without_a_mask() -> None:
    assert not assert_kept(Model(attention, mask=torch.randn(5, 5)), *inputs())
    model = Model(attention)
    model.mask = None
    assert not assert_kept(model, *inputs())


# --------------------------------------------------------------------------- preserves, idempotent


@settings(deadline=None, max_examples=draws(6))
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    lead=st.sampled_from([(), (1, 1), (2, 1), (2, 3)]),
    seed=st.integers(0, 99),
    scale=st.none() | st.floats(0.1, 2),
)
def test_preserves(
    sizes: tuple[int, int], lead: tuple[int, ...], seed: int, scale: float | None
) -> None:
    def forward(m: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, m.mask, scale=scale)

    mask = torch.rand(*lead, *sizes, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[..., 0] = True
    model, given = Model(forward, mask=mask), inputs(*sizes, torch.float64)
    graph, editor = apply(SimplifyMasks(), model, *given)
    assert len(editor.rewrites) == 1
    torch.testing.assert_close(run(graph, *given), run(model, *given))
    assert not SimplifyMasks().run(graph).modified
