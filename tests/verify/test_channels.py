"""The comparison of two float64 results, channel by channel."""

import pytest
import torch

from passfx.verify.channels import channel_error
from passfx.verify.error import relative_error


def test_each_channel_by_its_own_norm() -> None:
    reference = torch.ones(2, 3, 4, dtype=torch.float64)
    reference[:, 1] = 1e-10
    result = reference.clone()
    assert channel_error(result, reference, 1.0) == 0.0
    result[0, 1, 2] *= -1
    assert relative_error(result, reference) < 1e-9
    assert channel_error(result, reference, 1.0) == pytest.approx(2.0, rel=1e-3)


def test_what_rounding_explains_is_no_error() -> None:
    """A channel that cancels is all rounding, of the values that it was computed from."""
    reference = torch.ones(2, 3, 4, dtype=torch.float64)
    reference[:, 1] = 1e-18
    result = reference.clone()
    result[:, 1] = -2e-16
    assert channel_error(result, reference, 1.0) < 1e-9
    assert channel_error(result, reference, 1e-6) > 1.0


def test_other_shapes_and_infinities_are_infinitely_far() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    assert channel_error(one, one[:, :1], 1.0) == float("inf")
    assert channel_error(one, one / 0, 1.0) == float("inf")
    assert channel_error([one], [one, one], 1.0) == float("inf")
    assert channel_error([one, one], [one, one], 1.0) == 0.0
