"""Whole models, optimised and proven."""

import torch
from torch import nn

import passfx
from passfx.jobs.optimize import Optimized
from tests.models import randomize


def optimize(model: nn.Module, *shape: int) -> Optimized:
    """Optimise a model with random norms, and with parity proven."""
    optimized = passfx.optimize(randomize(model), (torch.randn(*shape),))
    report = optimized.report
    assert report.parity is not None and report.parity.passed
    assert not any(run.rolled_back for run in report.passes)
    return optimized
