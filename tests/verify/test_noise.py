"""Runs of a model whose operators round at random: as noisy as rounding is, and no noisier."""

import pytest
import torch
from torch import Tensor, nn

from passfx.graph.evaluate import run_flat
from passfx.verify.error import relative_error
from passfx.verify.noise import rounded_results
from tests.helpers import captured


def errors(
    model: nn.Module, *inputs: Tensor, half: torch.dtype | None = None, runs: int = 4
) -> list[float]:
    """How far some runs are from float64."""
    found, generator = captured(model, *inputs), torch.Generator().manual_seed(0)
    (reference,) = run_flat(found.graph_module, found.flat_inputs)
    noisy = [
        rounded_results(found.graph_module, found.flat_inputs, generator, half) for _ in range(runs)
    ]
    return [relative_error(result, reference) for (result,) in noisy]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.last(torch.relu(self.norm(self.first(x)))), -1)


@pytest.mark.parametrize(
    ("half", "unit"), [(None, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)]
)
def test_noise_is_a_few_units_in_the_last_place(half: torch.dtype | None, unit: float) -> None:
    torch.manual_seed(0)
    found = errors(Layers(), torch.randn(4, 16), half=half)
    assert len(set(found)) == len(found)
    assert all(unit / 8 < error < 8 * unit for error in found)


def test_noise_of_a_model_in_its_own_dtype() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        unit = torch.finfo(dtype).eps
        for error in errors(Layers().to(dtype), x.to(dtype)):
            assert unit / 8 < error < 8 * unit


class Masked(nn.Module):
    """As attention masks are made: one minus the mask, times the smallest number, or −inf."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("future", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, mask: Tensor) -> Tensor:
        bias = (1.0 - mask[:, None, :].float()) * torch.finfo(torch.float32).min
        return torch.softmax(bias + self.future, -1)


def test_what_is_exact_stays_exact() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    assert max(errors(Masked(), mask)) < 1e-6


class Difference(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 1.1 - y * 1.1


def test_noise_is_large_where_large_numbers_cancel() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = errors(Difference(), x, x * (1 + 1e-5))
    assert all(1e-4 < error < 0.1 for error in found)


def test_zero_infinity_and_nan_stay() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.1 + x

    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 0.3])
    assert all(0 <= error < 1e-6 for error in errors(Sum(), x))


def test_numbers_below_the_smallest_of_half_precision_are_noise() -> None:
    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.1e-8 * 1e8

    x = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 1
    assert all(error > 0.1 for error in errors(Back(), x, half=torch.float16))
    assert all(error < 1e-6 for error in errors(Back(), x))


class Mixed(nn.Module):
    """Integers, several results, complex numbers, and a second output."""

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (x * 0.3).split(3, 1)
        spectrum = torch.fft.fft(left)
        return spectrum.abs() + right[ids], ids + 1


def test_noise_of_mixed_operators() -> None:
    x, ids = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0])
    found = captured(Mixed(), x[:2], ids)
    reference, numbers = run_flat(found.graph_module, found.flat_inputs)
    generator = torch.Generator().manual_seed(0)
    result, same = rounded_results(found.graph_module, found.flat_inputs, generator)
    assert 0 < relative_error(result, reference) < 1e-6
    assert torch.equal(same, numbers)


def test_runs_depend_on_the_generator_alone() -> None:
    found = captured(Layers(), torch.randn(4, 16))

    def run(seed: int) -> Tensor:
        torch.rand(3)
        generator = torch.Generator().manual_seed(seed)
        return rounded_results(found.graph_module, found.flat_inputs, generator)[0]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
