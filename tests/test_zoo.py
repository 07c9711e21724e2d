"""Models that people use: each is optimised, proven, and has the operators that it should."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import passfx
from tests.helpers import randomize

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def randomized(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics near those of a trained net, frozen norms included.

    Statistics far from those of the activations let them grow from block to block until a softmax
    at the end decides by rounding alone.
    """
    for module in randomize(model).modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            for buffer in module.buffers():
                buffer.uniform_(0.5, 1.5)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.mul_(0.1)
                module.bias.mul_(0.1)
    return model


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=7, **options)


def frozen_resnet50() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d
    return torchvision.models.resnet50(num_classes=7, norm_layer=norm)


# The model, the size of its input, the counts that some operators must have before and after.
ZOO: dict[str, tuple[Callable[[], nn.Module], int, dict[str, int], dict[str, int]]] = {
    "resnet18": (
        from_timm("resnet18"), 64,
        {"conv2d": 20, "batch_norm": 20, "add": 8},
        {"conv2d": 20, "batch_norm": 0, "add": 8, "relu": 17},
    ),
    "resnet50d": (
        from_timm("resnet50d"), 64,
        {"conv2d": 55, "batch_norm": 55, "avg_pool2d": 3},
        {"conv2d": 55, "batch_norm": 0, "avg_pool2d": 3},
    ),
    "resnetv2_50x1_bit": (
        from_timm("resnetv2_50x1_bit"), 64,
        {"conv2d": 54, "batch_norm": 53},
        {"conv2d": 54, "batch_norm": 0, "reshape": 1},  # that of the head
    ),
    "nfnet_l0": (
        from_timm("nfnet_l0"), 64,
        {"conv2d": 81, "batch_norm": 57},
        {"conv2d": 81, "batch_norm": 0},
    ),
    "repvgg_a0": (
        from_timm("repvgg_a0"), 64,
        {"conv2d": 44, "batch_norm": 61},
        {"conv2d": 22, "batch_norm": 0, "add": 0},
    ),
    "convnext_atto": (from_timm("convnext_atto"), 64, {"batch_norm": 0}, {"dropout": 0}),
    "vit_tiny": (
        from_timm("vit_tiny_patch16_224", img_size=64), 64,
        {"scaled_dot_product_attention": 12},
        {"scaled_dot_product_attention": 12, "dropout": 0, "clone": 0},
    ),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=7), 64,
        {"conv2d": 52, "batch_norm": 52, "hardtanh": 35},
        {"conv2d": 52, "batch_norm": 0, "dropout": 0},
    ),
    "frozen_resnet50": (
        frozen_resnet50, 64,
        {"conv2d": 53, "mul": 159, "rsqrt": 53},
        {"conv2d": 53, "mul": 0, "rsqrt": 0, "sub": 0, "add": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    build, size, before, after = ZOO[name]
    model = randomized(build())
    optimized = passfx.optimize(model, (torch.randn(2, 3, size, size),))
    report = optimized.report
    assert report.parity is not None and report.parity.passed
    assert not optimized.captured.dead_code.rewrites
    assert {key: report.before.ops.get(key, 0) for key in before} == before
    assert {key: report.after.ops.get(key, 0) for key in after} == after
    assert report.after.nodes <= report.before.nodes
    # a move that is predicted to be faster, as of a head before its pool of 2x2, may take more MACs
    assert report.after.macs <= 1.001 * report.before.macs
    assert not any(run.rolled_back for run in report.passes)
    undone = [item for run in report.passes for item in run.refusals if "undone" in item.reason]
    assert not undone


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
