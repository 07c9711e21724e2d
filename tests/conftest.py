"""What every test may rely on."""

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
