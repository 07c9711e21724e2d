"""How far a result is from a reference."""

import math
from typing import Any

import pytest
import torch

from passfx.verify.error import absolute_error, relative_error


@pytest.mark.parametrize(
    ("result", "reference", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0, 0.5], [0.0, 0.0], 0.5),
        ([1.0], [1.0, 1.0], math.inf),
        ([], [], 0.0),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([math.inf, 1.5], [math.inf, 1.0], 0.5),
        ([-math.inf, 1.0], [math.inf, 1.0], math.inf),
        ([1e308, 1.0], [math.inf, 1.0], math.inf),
        ([math.inf, 1.0], [2.0, 1.0], math.inf),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.nan, 1.0], [math.inf, 1.0], math.inf),
        ([math.nan, math.inf], [math.nan, math.inf], 0.0),
        ([-1.7e308, 0.0], [1.7e308, 0.0], math.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, False], 0.0),
        ([1j, 2.0], [1j, 1.0], 1.0),
    ],
)
def test_relative_error(result: list[Any], reference: list[Any], error: float) -> None:
    kind = torch.complex128 if any(isinstance(item, complex) for item in result) else None
    kind = torch.float64 if kind is None and isinstance((result or [0.0])[0], float) else kind
    pair = (torch.tensor(items, dtype=kind) for items in (result, reference))
    assert relative_error(*pair) == error


def test_relative_error_of_several_results_is_the_largest() -> None:
    parts = [torch.ones(2), torch.ones(3)]
    assert relative_error(parts, parts) == 0.0
    assert relative_error([parts[0], parts[1] * 2], parts) == 1.0
    assert relative_error(parts[:1], parts) == math.inf


def test_relative_error_widens_before_it_subtracts() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert relative_error(third.half(), third) == pytest.approx(2.4e-4, rel=0.1)
    assert relative_error(third.float(), third) == pytest.approx(3e-8, rel=0.1)


def test_relative_error_leaves_its_operands_alone() -> None:
    result, reference = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
    relative_error(result, reference)
    assert result.tolist() == [1.0, 2.0] and reference.tolist() == [3.0, 4.0]


def test_absolute_errors_are_infinite_where_one_alone_is() -> None:
    finite, infinite = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.inf])
    assert absolute_error(infinite, finite) == absolute_error(finite, infinite) == math.inf
    assert absolute_error(infinite, infinite) == 0.0
