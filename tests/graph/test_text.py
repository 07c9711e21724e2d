"""The text of a graph: a golden one, what it leaves out, what it shows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from passfx.graph.text import to_text
from tests.helpers import captured


def text(model: nn.Module, *inputs: Tensor) -> str:
    return to_text(captured(model, *(inputs or (torch.randn(2, 3, 8, 8),))).graph_module)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.chunk(functional.relu(self.conv(x) + x), 2, dim=-1)
        return torch.cat([first, second.to(torch.float16)], 1)


def test_golden() -> None:
    assert text(Block()).splitlines() == [
        "x : f32[2, 3, 8, 8]",
        "%0 = conv2d(x, f32[3, 3, 3, 3], None, [1, 1], [1, 1], [1, 1], 1) : f32[2, 3, 8, 8]",
        "%1 = add(%0, x, 1) : f32[2, 3, 8, 8]",
        "%2 = relu(%1) : f32[2, 3, 8, 8]",
        "%3 = split(%2, 4, -1) : -",
        "%4 = getitem(%3, 0) : f32[2, 3, 8, 4]",
        "%5 = getitem(%3, 1) : f32[2, 3, 8, 4]",
        "%6 = to(%5, torch.float16, None, None, None, False, None) : f16[2, 3, 8, 4]",
        "%7 = cat([%4, %6], 1) : f32[2, 6, 8, 4]",
        "return [%7]",
    ]


class Renamed(nn.Module):
    """The same as a convolution and a relu, with other names and another spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("offset", torch.randn(4))

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.kernel, self.offset, stride=1, groups=1).relu()


def test_names_weights_and_spelling_do_not_show() -> None:
    assert text(Renamed()) == text(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_the_text_of_a_second_capture_is_the_same() -> None:
    assert text(Block()) == text(Block())


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Conv2d(3, 4, 3, stride=2),
        lambda: nn.Conv2d(3, 4, 3, padding=1),
        lambda: nn.Conv2d(3, 5, 3),
        lambda: nn.Conv2d(3, 4, 3, bias=False),
        lambda: nn.Conv2d(3, 4, 3).double(),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    ],
)
def test_structure_shows(other: Callable[[], nn.Module]) -> None:
    model = other()
    x = torch.randn(2, 3, 8, 8, dtype=next(model.parameters()).dtype)
    assert text(model, x) != text(nn.Conv2d(3, 4, 3))


class Power(nn.Module):
    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return x**self.exponent


def test_the_type_of_a_number_shows() -> None:
    assert text(Power(2)) != text(Power(2.0))


class Operands(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.sin(x), torch.cos(x)
        return b - a if self.swapped else a - b


def test_the_order_of_operands_shows() -> None:
    assert text(Operands(True)) != text(Operands(False))


def test_dynamic_sizes_are_symbols() -> None:
    program = captured(nn.ReLU(), torch.randn(2, 3), dynamic_shapes={"input": {0: Dim.DYNAMIC}})
    (symbol,) = program.dim_names
    assert to_text(program.graph_module) == (
        f"input_1 : f32[{symbol}, 3]\n%0 = relu(input_1) : f32[{symbol}, 3]\nreturn [%0]"
    )


class Condition(nn.Module):
    def __init__(self, otherwise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.otherwise = otherwise

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, self.otherwise, (x,))


def test_the_branches_of_a_condition_show() -> None:
    def cosine(x: Tensor) -> Tensor:
        return torch.cos(x)

    def tangent(x: Tensor) -> Tensor:
        return torch.tan(x)

    x = torch.randn(3)
    assert "cos(" in text(Condition(cosine), x)
    assert text(Condition(cosine), x) != text(Condition(tangent), x)
