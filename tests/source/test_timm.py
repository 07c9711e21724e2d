"""timm:NAME."""

from typing import Any

import pytest
import torch

from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


def test_timm_model_has_its_declared_size() -> None:
    source = load_source(SourceSpec("timm:resnet10t"))
    assert source.args[0].shape == (1, 3, 176, 176)


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("resnet10t", {"in_chans": 1, "num_classes": 3}, (1, 1, 176, 176)),
        ("test_vit", {"img_size": 96}, (1, 3, 96, 96)),
        ("test_vit", {"img_size": (96, 64)}, (1, 3, 96, 64)),
    ],
)
def test_timm_inputs_follow_the_arguments(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    source = load_source(SourceSpec(f"timm:{name}", arguments=arguments))
    assert source.args[0].shape == shape
    with torch.no_grad():
        source.model.eval()(*source.args)
