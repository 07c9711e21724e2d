"""Whole models, optimised and proven."""

import torch
from torch import nn

import passfx
from passfx.jobs.optimize import Optimized
from tests.models import randomize


def assert_called_with_gradients(optimized: Optimized) -> None:
    """A module is called outside `torch.no_grad` too; its weights need no gradient."""
    with torch.enable_grad():
        result = optimized.module(*optimized.captured.args)
    assert not any(item.requires_grad for item in torch.utils._pytree.tree_leaves(result))


def optimize(model: nn.Module, *shape: int) -> Optimized:
    """Optimise a model with random norms, and with parity proven."""
    optimized = passfx.optimize(randomize(model), (torch.randn(*shape),))
    assert_called_with_gradients(optimized)
    report = optimized.report
    assert report.parity is not None and report.parity.passed
    assert not any(run.rolled_back for run in report.passes)
    return optimized
