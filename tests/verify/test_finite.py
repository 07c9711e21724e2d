"""NaN and infinity: named where they mean that nothing is proven, and nowhere else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import passfx
from passfx.errors import VerificationError
from passfx.verify.finite import check_weights
from tests.helpers import captured
from tests.verify.nets import Folded

IMAGE = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def spoiled(name: str, *values: float) -> nn.Module:
    """A convolution and a norm, of which the first elements of one tensor are these."""
    model = Folded().eval()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[: len(values)] = torch.tensor(values)
    return model


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("conv.weight", (torch.nan, torch.nan, torch.inf), "2 NaN and 1 infinity"),
        ("conv.bias", (-torch.inf, torch.inf), "2 infinities"),
        ("norm.running_var", (torch.inf,), "1 infinity"),
        ("norm.running_mean", (torch.nan,), "1 NaN"),
    ],
)
def test_weights_that_are_not_finite_are_named(
    name: str, values: tuple[float, ...], told: str
) -> None:
    model = spoiled(name, *values)
    message = rf"^the weights are not finite: {name} holds {told}; .* --allow-nonfinite \(allow_"
    with pytest.raises(VerificationError, match=message):
        passfx.optimize(model, (IMAGE,))
    optimized = passfx.optimize(model, (IMAGE,), allow_nonfinite=True)
    assert optimized.report.parity is not None and optimized.report.parity.passed
    assert passfx.optimize(model, (IMAGE,), verify=False).report.parity is None


def test_many_such_tensors_are_counted() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with torch.no_grad():
        for item in model.parameters():
            item.fill_(torch.nan)
    with pytest.raises(VerificationError, match=r"0\.weight holds 4 NaN, .* 3 more tensors are"):
        check_weights(captured(model, torch.randn(1, 2)))


class Masks(nn.Module):
    """Masks as people write them: −inf in a buffer, in a constant, and made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("causal", torch.full((6, 6), -torch.inf).triu(1))
        self.bound = torch.tensor(torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.linear(x) + self.causal
        scores = scores + torch.full((6, 6), -torch.inf).triu(2)
        return torch.minimum(torch.softmax(scores, -1), self.bound)


def test_masks_are_ordinary() -> None:
    optimized = passfx.optimize(Masks().eval(), (torch.randn(2, 6, 6),))
    assert optimized.report.parity is not None
    assert (optimized.report.parity.passed, optimized.report.parity.nonfinite) == (True, 0)


def test_a_weight_that_no_output_reads_does_not_matter() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Parameter(torch.tensor([torch.nan]))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    check_weights(captured(Spare(), torch.randn(1, 2)))


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ROW = torch.tensor([[-1.0, 0.0, 2.0, 4.0]])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (torch.log, "output holds 1 NaN and 1 infinity"),
        (lambda x: x.square() * torch.inf + 1e300, "output holds 1 NaN and 3 infinities"),
        (lambda x: (x.abs() + 1) * torch.inf, "output holds 4 infinities"),
    ],
)
def test_results_of_which_nothing_is_proven(
    function: Callable[[Tensor], Tensor], told: str
) -> None:
    message = f"the model's own results on the example inputs are not finite, .*: {told}; give"
    with pytest.raises(VerificationError, match=message):
        passfx.optimize(Applied(function), (ROW,))
    proof = passfx.optimize(Applied(function), (ROW,), allow_nonfinite=True).report.parity
    assert proof is not None and proof.passed and proof.nonfinite > 0


def test_infinity_among_finite_results_is_a_value_that_is_counted() -> None:
    model = Applied(lambda x: x.masked_fill(x < 0, -torch.inf))
    proof = passfx.optimize(model, (ROW,)).report.parity
    assert proof is not None and proof.passed and proof.nonfinite >= 1
