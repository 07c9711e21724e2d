"""What every test may rely on."""

from collections.abc import Iterator
from copy import copy
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.schemas import define_torchvision_schemas

torch.set_num_threads(1)  # small tensors: threads cost more than they bring
define_torchvision_schemas()

# The same examples at every run; how long one takes is the machine's, and no failure.
settings.register_profile(
    "passfx", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# `pytest --hypothesis-profile=thorough`: three times as many captured models, new ones every time.
settings.register_profile(
    "thorough", settings.get_profile("passfx"), derandomize=False, max_examples=300
)
settings.load_profile("passfx")


@pytest.fixture(autouse=True, scope="session")
def _one_registry() -> Iterator[None]:
    """torch makes its table of ONNX operators anew for every file, the same one each time."""
    made = cache(ONNXRegistry.from_torchlib)

    def copied(**options: int) -> ONNXRegistry:
        registry = copy(made(**options))
        registry.functions = {name: [*known] for name, known in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
