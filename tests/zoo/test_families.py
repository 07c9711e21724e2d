"""One model of every timm family."""

import re

import pytest
import torch

import passfx
from tests.models import randomized

timm = pytest.importorskip("timm")

_SMALL = ("test_", "pico", "femto", "atto", "nano", "tiny", "xxs", "xs", "mini", "small", "_s")
_LARGE = 150_000_000


def smallest_models() -> list[str]:
    """One model of each of timm's families, the smallest as far as its name tells."""
    families = (timm.list_models(module=module) for module in timm.list_modules())
    return [min(names, key=_smallness) for names in families if names]


def _smallness(name: str) -> tuple[bool, int, list[int], str]:
    size = max(timm.get_pretrained_cfg(name).input_size[1:])
    word = next((place for place, word in enumerate(_SMALL) if word in name), len(_SMALL))
    return size > 288, word, [int(number) for number in re.findall(r"\d+", name)], name


@pytest.mark.slow
@pytest.mark.parametrize("name", smallest_models())
def test_every_timm_family(name: str) -> None:
    model = randomized(timm.create_model(name))
    if sum(item.numel() for item in model.parameters()) > _LARGE:
        pytest.skip("too large to be run in float64 here")
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    report = passfx.optimize(model, (x,)).report
    assert report.parity is not None and report.parity.passed
    assert report.after.nodes <= report.before.nodes
    assert report.after.macs <= 1.01 * report.before.macs
