"""One optimised network for all tests of the jobs that only look at it."""

import pytest
import torch
from torch import Tensor

import passfx
from passfx.jobs.optimize import Optimized
from tests.jobs.blocks import Block, make_block


@pytest.fixture(scope="session")
def image() -> Tensor:
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def block() -> Block:
    return make_block()


@pytest.fixture(scope="session")
def optimized(block: Block, image: Tensor) -> Optimized:
    return passfx.optimize(block, (image,))
