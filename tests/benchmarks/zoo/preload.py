"""What every worker needs, imported once before workers are forked from it.

The first export of a process also imports the exporter, which belongs to nobody's time.
"""

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
torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)
