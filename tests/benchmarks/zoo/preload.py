"""What every worker needs, imported once before workers are forked from it; nothing of it runs."""

import timm  # noqa: F401
import torch
import torchvision  # noqa: F401

import passfx.jobs.convert
import passfx.jobs.export
import passfx.passes
import passfx.runtime.reference  # noqa: F401
from tests.benchmarks.zoo import worker  # noqa: F401
from tests.schemas import define_torchvision_schemas

define_torchvision_schemas()
torch.set_num_threads(1)
