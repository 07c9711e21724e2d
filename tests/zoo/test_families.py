"""One model of every timm family."""

import json

import pytest
import torch

import passfx
from tests.benchmarks.zoo.cases import KNOWN
from tests.models import randomized

timm = pytest.importorskip("timm")

_LARGE = 150_000_000
_KNOWN = json.loads(KNOWN.read_text())


@pytest.mark.slow
def test_the_zoo_knows_every_family() -> None:
    families = {name for name in timm.list_modules() if timm.list_models(module=name)}
    assert families <= {item["family"] for item in _KNOWN["timm"]}


@pytest.mark.slow
def test_the_zoo_knows_every_builder_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    modules = (models, models.segmentation, models.video, models.optical_flow)
    builders = {name for module in modules for name in models.list_models(module)}
    assert builders <= {item["model"] for item in _KNOWN["torchvision"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [item["model"] for item in _KNOWN["timm"]])
def test_every_timm_family(name: str) -> None:
    model = randomized(timm.create_model(name))
    if sum(item.numel() for item in model.parameters()) > _LARGE:
        pytest.skip("too large to be run in float64 here")
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    report = passfx.optimize(model, (x,)).report
    assert report.parity is not None and report.parity.passed
    assert report.after.nodes <= report.before.nodes
    assert report.after.macs <= 1.01 * report.before.macs
