"""The models that tests and benchmarks share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.helpers import randomize

Build = Callable[[], nn.Module]

# What the GPU table measures.
DEPLOYED = (
    "timm:resnet50",
    "timm:resnet50d",
    "timm:repvgg_a0",
    "timm:mobileone_s1",
    "timm:fastvit_t8",
    "timm:ghostnetv3_100",
    "timm:densenet121",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
)


def randomized(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics near those of a trained net, frozen norms included.

    Statistics far from those of the activations let them grow from block to block until a softmax
    at the end decides by rounding alone.
    """
    for module in randomize(model).modules():
        if type(module).__name__ == "FrozenBatchNorm2d":  # torchvision's
            for buffer in module.buffers():
                buffer.uniform_(0.5, 1.5)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.mul_(0.1)
                module.bias.mul_(0.1)
    return model


def from_timm(name: str, **options: Any) -> Build:
    """A model of timm with seven classes."""

    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=7, **options)
        return model

    return build


def from_torchvision(name: str, **options: Any) -> Build:
    """A model of torchvision with seven classes."""

    def build() -> nn.Module:
        from torchvision import models

        model: nn.Module = getattr(models, name)(num_classes=7, **options)
        return model

    return build


def frozen_resnet50(num_classes: int = 7) -> nn.Module:
    """A backbone as detectors use it."""
    from torchvision import models, ops

    model: nn.Module = models.resnet50(num_classes=num_classes, norm_layer=ops.FrozenBatchNorm2d)
    return model


ZOO: dict[str, Build] = {
    "resnet18": from_timm("resnet18"),
    "resnet50d": from_timm("resnet50d"),
    "resnetv2_50x1_bit": from_timm("resnetv2_50x1_bit"),
    "nfnet_l0": from_timm("nfnet_l0"),
    "repvgg_a0": from_timm("repvgg_a0"),
    "convnext_atto": from_timm("convnext_atto"),
    "vit_tiny": from_timm("vit_tiny_patch16_224", img_size=64),
    "fastvit_t8": from_timm("fastvit_t8"),
    "densenet121": from_timm("densenet121"),
    "mobilenet_v2": from_torchvision("mobilenet_v2"),
    "googlenet": from_torchvision("googlenet", aux_logits=False, init_weights=False),
    "frozen_resnet50": frozen_resnet50,
}
