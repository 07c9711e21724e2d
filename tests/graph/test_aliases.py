"""What results share memory with, decided from a graph without data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from passfx.graph.aliases import CONSTANT, graph_aliases
from tests.helpers import captured
from tests.passes.strategies import Model


def copy_flat(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format).view(-1)


# What each returns; the pairs with what lies as the example does, and with its axes reversed.
FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], set[Any], set[Any]]] = {
    "the input": (lambda m, x: x, {(0, "input 0")}, {(0, "input 0")}),
    "views": (lambda m, x: (x.t(), x[1:]), *({(0, "input 0"), (1, "input 0"), (1, 0)},) * 2),
    "parts": (lambda m, x: (x + 1).chunk(2), {(1, 0)}, {(1, 0)}),
    "a reshape": (lambda m, x: x.reshape(-1), {(0, "input 0")}, set()),
    "a reshape of a transpose": (lambda m, x: x.t().reshape(-1), set(), {(0, "input 0")}),
    "a copy of a transpose": (lambda m, x: copy_flat(x.t()), set(), set()),
    "its own dtype": (lambda m, x: x.to(torch.float32), {(0, "input 0")}, {(0, "input 0")}),
    "another dtype": (lambda m, x: x.to(torch.float64), set(), set()),
    "a copy": (lambda m, x: x.clone(), set(), set()),
    "what is computed": (lambda m, x: (x + 1, x.relu(), m.layer(x)), set(), set()),
    "dropout": (lambda m, x: functional.dropout(x, 0.5, False), *({(0, "input 0")},) * 2),
    "type_as": (lambda m, x: x.type_as(m.w), {(0, "input 0")}, {(0, "input 0")}),
    "einsum": (lambda m, x: torch.einsum("ij->ji", x), *({(0, "input 0")},) * 2),
    "constants": (
        lambda m, x: (x + 1, m.w[:2], m.w),
        *({(1, CONSTANT), (2, CONSTANT), (2, 1)},) * 2,
    ),
    "what is broadcast": (lambda m, x: x.sum(0).expand(2, 3), {(0, 0)}, {(0, 0)}),
    "nested": (lambda m, x: {"a": [(y := x + 1), None], "b": (y,)}, {(2, 0)}, {(2, 0)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_pairs_that_share_memory(form: str) -> None:
    function, lying, is_reversed = FORMS[form]
    model = Model(function, w=torch.randn(3), layer=nn.Linear(3, 3))
    found = captured(model, torch.randn(2, 3))
    assert found.aliases == (lying, is_reversed)
    functional_graph = graph_aliases(found.graph_module.graph)  # has a clone for some reshapes
    assert all(own <= wanted for own, wanted in zip(functional_graph, found.aliases, strict=True))
