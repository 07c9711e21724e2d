"""The models that tests and benchmarks share, with random norms; it knows nothing of passfx."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from models import reparam

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


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters for every batch norm; a fresh one proves nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(generator=generator)
    return model


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


# Models for images of 64x64.
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

# Blocks for four channels, each of which is one convolution when deployed.
BLOCKS: dict[str, Build] = {
    "repvgg": partial(reparam.RepVGGBlock, 4, 4),
    "repvgg_stride": partial(reparam.RepVGGBlock, 4, 6, stride=2),
    "repvgg_groups": partial(reparam.RepVGGBlock, 4, 4, groups=2),
    "mobileone_depthwise": partial(reparam.MobileOneBlock, 4, 4, 3, groups=4),
    "mobileone_stride": partial(reparam.MobileOneBlock, 4, 4, 3, stride=2, groups=4),
    "mobileone_pointwise": partial(reparam.MobileOneBlock, 4, 6, 1),
    "acblock_3_1": partial(reparam.ACBlock, 4, 6, 3, 1),
    "acblock_3_0": partial(reparam.ACBlock, 4, 6, 3, 0),
    "acblock_5_1": partial(reparam.ACBlock, 4, 6, 5, 1),
    "acblock_stride": partial(reparam.ACBlock, 4, 6, 5, 1, stride=2),
    "diverse": partial(reparam.DiverseBranchBlock, 4, 4),
    "diverse_groups": partial(reparam.DiverseBranchBlock, 4, 4, groups=4),
    "diverse_groups_stride": partial(reparam.DiverseBranchBlock, 4, 8, groups=4, stride=2),
    "diverse_stride": partial(reparam.DiverseBranchBlock, 4, 6, 5, stride=2),
    "edge": partial(reparam.EdgeBlock, 4, 6),
    "edge_identity": partial(reparam.EdgeBlock, 4, 4, identity=True),
    "alpha": partial(reparam.AlphaBlock, 4, 6),
    "qarepvgg": partial(reparam.QARepVGGBlock, 4, 4),
    "qarepvgg_stride": partial(reparam.QARepVGGBlock, 4, 6, stride=2),
    "repmixer": partial(reparam.RepMixer, 4),
    "dilated": partial(reparam.DilatedBlock, 4),
}
