"""Inputs that fail by their dtype: which, and what to do."""

import pytest
import torch
from torch import Tensor, nn

from passfx.capture.program import capture
from passfx.errors import CaptureError


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.linear(self.table(ids))
        return x if mask is None else torch.where(mask, x, 0)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor, *, more: list[Tensor]) -> Tensor:
        return self.conv(x) + self.conv(more[1])


def error_of(model: nn.Module, *args: Tensor, **kwargs: object) -> str:
    before = [item.clone() for item in model.state_dict().values()]
    with pytest.raises(CaptureError) as caught:
        capture(model, args, kwargs)
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_half_model_on_floats() -> None:
    message = error_of(nn.Sequential(nn.Conv2d(3, 4, 3)).half(), torch.ones(1, 3, 8, 8))
    assert message.startswith("Sequential itself fails on inputs of float32 1x3x8x8")
    assert message.endswith(
        "; it takes input in float16, not float32, because its weights are in float16 "
        "(model.float() makes them float32): give it so, in args or example_inputs(), or by "
        "--input-shape input:1x3x8x8:float16"
    )


def test_float_model_on_others() -> None:
    for dtype in (torch.float64, torch.float16, torch.uint8, torch.int64):
        name = str(dtype).removeprefix("torch.")
        message = error_of(nn.Linear(3, 3), torch.ones(1, 3, dtype=dtype))
        assert f"; it takes input in float32, not {name}" in message
        assert ("because its weights are in float32:" in message) == dtype.is_floating_point


def test_floats_where_indices_are_due() -> None:
    message = error_of(Words(), torch.ones(1, 8))
    assert message.endswith(
        "; it takes ids in int64, not float32: give it so, in args or example_inputs(), or by "
        "--input-shape ids:1x8:int64"
    )


def test_one_of_several_inputs() -> None:
    ids = torch.ones(1, 8, dtype=torch.int64)
    assert "it takes mask in bool, not float32" in error_of(Words(), ids, mask=torch.ones(1, 8, 1))
    x = torch.ones(1, 3, 5)
    assert error_of(Pair(), x, more=[x, x.long()]).endswith(
        "it takes more[1] in float32, not int64: give it so, in args or example_inputs()"
    )
    message = error_of(Pair().double(), x, more=[x, x])
    assert "it takes x in float64, not float32, more[0] in float64, not float32, more[1]" in message


def test_other_failures_get_no_advice() -> None:
    assert "it takes" not in error_of(nn.Linear(3, 3), torch.ones(1, 4))
    message = error_of(Words(), torch.full((1, 8), 99))  # which the tracer does not see
    assert message.startswith("Words itself fails on inputs of int64 1x8 at ")
    assert message.endswith(
        " (x = self.linear(self.table(ids))): IndexError: index out of range in self"
    )
