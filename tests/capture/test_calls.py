"""A model whose calls change the next one is refused; one that only keeps notes is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passfx.capture.program import capture
from passfx.errors import CaptureError


class Keeps(nn.Module):
    """A module with attributes to write to, around a function of itself and x."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body
        self.inner = nn.Linear(3, 3)
        self.table = torch.zeros(3)
        self.calls = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def adds(model: Any, x: Tensor) -> Tensor:
    model.table = model.table + 1  # the line to name
    return x * model.table


def counts(model: Any, x: Tensor) -> Tensor:
    model.calls += 1  # the line to name
    return x * model.calls


def deeper(model: Any, x: Tensor) -> Tensor:
    y = model.inner(x) + getattr(model.inner, "last", 0)
    model.inner.last = y  # the line to name
    return y


@pytest.mark.parametrize(
    ("body", "name", "line"), [(adds, "table", 1), (counts, "calls", 1), (deeper, "inner.last", 2)]
)
def test_an_attribute_that_the_next_call_reads_is_refused_with_its_line(
    body: Any, name: str, line: int
) -> None:
    at = rf"test_calls\.py:{body.__code__.co_firstlineno + line}"
    with pytest.raises(
        CaptureError,
        match=f"Keeps gives another result at its second call.* its own '{name}' at .*{at}, which",
    ):
        capture(Keeps(body), (torch.ones(2, 3),))


def grows(model: Any, x: Tensor) -> Tensor:
    model.seen.append(x)
    return torch.stack(model.seen).sum(0)


def test_a_list_that_the_next_call_reads_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"changes its own 'seen\[0\]', which a fixed graph"):
        capture(Keeps(grows), (torch.ones(2, 3),))


def takes_notes(model: Any, x: Tensor) -> Tensor:
    model.calls += 1
    model.seen.append(x)
    model.table = x.sum(0)
    model.inner.last = model.inner(x)
    return model.inner.last * 2


def made_once(model: Any, x: Tensor) -> Tensor:
    if not model.calls:
        model.table = torch.arange(3.0)
        model.calls = x.shape[0]
    return x + model.table


@pytest.mark.parametrize("body", [takes_notes, made_once])
def test_an_attribute_that_no_later_result_depends_on_is_accepted(body: Any) -> None:
    x, model = torch.randn(2, 3), Keeps(body)
    module = capture(model, (x,)).graph_module
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(module(x), model(x))


def test_the_model_is_called_only_where_an_attribute_changed() -> None:
    real = []

    def body(model: Any, x: Tensor) -> Tensor:
        real.append(type(x) is Tensor)
        model.shape = (2, 3)
        return x * 2

    model = Keeps(body)
    model.shape = (2, 3)
    capture(model, (torch.ones(2, 3),))
    assert not any(real)


def test_a_call_uses_up_no_random_numbers() -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        model.last = torch.rand(3)
        return x * 2

    model, x = Keeps(body), torch.ones(2, 3)
    state = torch.get_rng_state()
    capture(model, (x,))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_weight_written_behind_the_tracers_back_is_named() -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        model.inner.weight.data.add_(1)
        return model.inner(x)

    model = Keeps(body)
    weight = model.inner.weight.clone()
    with pytest.raises(CaptureError, match="it writes to its own 'inner.weight' in eval mode"):
        capture(model, (torch.ones(2, 3),))
    assert torch.equal(model.inner.weight, weight)


def test_a_layer_that_was_never_called_is_refused_and_stays_so() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(
        CaptureError, match="0.weight of Sequential has no weights yet.*call the model once"
    ):
        capture(model, (torch.ones(2, 3),))
    assert isinstance(model[0], nn.LazyLinear)
