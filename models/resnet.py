"""ResNet-18 and ResNet-50 in four published variants, told apart by one table.

| variant   | what it changes                                                  | source           |
| --------- | ---------------------------------------------------------------- | ---------------- |
| `v1`      | a bottleneck strides in its first 1x1 convolution                | arXiv:1512.03385 |
| `v1.5`    | a bottleneck strides in its 3x3 convolution                      | fb.resnet.torch  |
| `d`       | v1.5, a stem of three 3x3 convolutions, projections that average | arXiv:1812.01187 |
| `preact`  | v1.5's strides, batch norm and ReLU before each convolution      | arXiv:1603.05027 |

A basic block, as ResNet-18 has it, holds no 1x1 convolution: there `v1` and `v1.5` are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Variant:
    """What a variant changes relative to v1.5."""

    stride_first: bool = False
    """A bottleneck strides in its first convolution instead of its second."""
    deep_stem: bool = False
    """Three 3x3 convolutions open the network instead of one 7x7 (ResNet-C)."""
    average_projection: bool = False
    """A projection averages 2x2 pixels instead of dropping three of four (ResNet-D)."""
    preactivation: bool = False
    """Batch norm and ReLU stand before each convolution instead of after it."""


VARIANTS = {
    "v1": Variant(stride_first=True),
    "v1.5": Variant(),
    "d": Variant(deep_stem=True, average_projection=True),
    "preact": Variant(preactivation=True),
}


class PostactivationBlock(nn.Module):
    """`relu(body(x) + projection(x))`, the body being conv-bn-relu-...-conv-bn.

    The projection is the identity where `projection` is None.

    Shapes: `(N, convs[0].in_channels, H, W)` to `(N, convs[-1].out_channels, H', W')`, where H'
    and W' are H and W divided by the block's stride and rounded up.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], projection: nn.Module | None) -> None:
        super().__init__()
        layers = [layer for conv in convs for layer in (conv, *_norm_relu(conv.out_channels))]
        self.body = nn.Sequential(*layers[:-1])  # the last ReLU comes after the sum
        self.projection = projection
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as the class says."""
        identity = x if self.projection is None else self.projection(x)
        out: Tensor = self.relu(self.body(x) + identity)
        return out


class PreactivationBlock(nn.Module):
    """`body(h) + projection(h)` with `h = relu(bn(x))`, the body being conv-bn-relu-...-conv.

    Where `projection` is None the skip is the identity of `x`, not of `h`: that is the clean
    path from block to block of He et al. 2016, "Identity Mappings in Deep Residual Networks".

    Shapes: as in `PostactivationBlock`.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], projection: nn.Module | None) -> None:
        super().__init__()
        layers = [layer for conv in convs for layer in (*_norm_relu(conv.in_channels), conv)]
        self.preactivation = nn.Sequential(*layers[:2])
        self.body = nn.Sequential(*layers[2:])
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as the class says."""
        preactivated = self.preactivation(x)
        identity = x if self.projection is None else self.projection(preactivated)
        out: Tensor = self.body(preactivated) + identity
        return out


class ResNet(nn.Module):
    """A residual network of four stages, the first one at a quarter of the input's resolution.

    Shapes: `(N, 3, H, W)` images to `(N, num_classes)` logits.
    """

    def __init__(
        self, depths: Sequence[int], variant: Variant, num_classes: int, *, bottleneck: bool
    ) -> None:
        """Build the network with `depths[i]` blocks in stage i."""
        super().__init__()
        self.stem = _stem(variant)
        stages = []
        in_channels = 64
        for index, depth in enumerate(depths):
            width = 64 * 2**index
            out_channels = 4 * width if bottleneck else width
            blocks = []
            for number in range(depth):
                # The stem's pooling has already brought stage 0 to its resolution.
                stride = 2 if index > 0 and number == 0 else 1
                convs = _body_convs(in_channels, width, stride, bottleneck, variant)
                projection = _projection(in_channels, out_channels, stride, variant)
                block = PreactivationBlock if variant.preactivation else PostactivationBlock
                blocks.append(block(convs, projection))
                in_channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        # Preactivation blocks end in a sum that nothing has normalised yet.
        self.final = nn.Sequential(*_norm_relu(in_channels) if variant.preactivation else ())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(N, num_classes)`."""
        features = self.final(self.stages(self.stem(x)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


def resnet18(variant: str = "v1", num_classes: int = 1000) -> ResNet:
    """Build a ResNet-18, two basic blocks to each stage (He et al. 2015, arXiv:1512.03385).

    Raises ValueError for a variant that `VARIANTS` does not name.
    """
    return ResNet((2, 2, 2, 2), _variant(variant), num_classes, bottleneck=False)


def resnet50(variant: str = "v1.5", num_classes: int = 1000) -> ResNet:
    """Build a ResNet-50, 3, 4, 6 and 3 bottlenecks (He et al. 2015, arXiv:1512.03385).

    Raises ValueError for a variant that `VARIANTS` does not name.
    """
    return ResNet((3, 4, 6, 3), _variant(variant), num_classes, bottleneck=True)


def example_inputs() -> tuple[Tensor]:
    """Return one image of normal noise, `(1, 3, 224, 224)` float32, the same at every call."""
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        known = ", ".join(repr(known) for known in VARIANTS)
        raise ValueError(f"There is no ResNet variant {name!r}; choose one of {known}.")
    return VARIANTS[name]


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Build a convolution that keeps H and W at stride 1; a batch norm supplies its bias."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


def _norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


def _stem(variant: Variant) -> nn.Sequential:
    """Build `(N, 3, H, W)` to `(N, 64, H / 4, W / 4)`."""
    if variant.deep_stem:
        convs = [_conv(3, 32, 3, stride=2), _conv(32, 32, 3), _conv(32, 64, 3)]
    else:
        convs = [_conv(3, 64, 7, stride=2)]
    layers = [layer for conv in convs for layer in (conv, *_norm_relu(conv.out_channels))]
    if variant.preactivation:
        del layers[-2:]  # the first block opens with its own batch norm and ReLU
    return nn.Sequential(*layers, nn.MaxPool2d(kernel_size=3, stride=2, padding=1))


def _body_convs(
    in_channels: int, width: int, stride: int, bottleneck: bool, variant: Variant
) -> list[nn.Conv2d]:
    if not bottleneck:
        return [_conv(in_channels, width, 3, stride), _conv(width, width, 3)]
    first, second = (stride, 1) if variant.stride_first else (1, stride)
    return [
        _conv(in_channels, width, 1, first),
        _conv(width, width, 3, second),
        _conv(width, 4 * width, 1),
    ]


def _projection(
    in_channels: int, out_channels: int, stride: int, variant: Variant
) -> nn.Sequential | None:
    """Build what makes the skip's shape agree with the body's, None where it already does."""
    if stride == 1 and in_channels == out_channels:
        return None
    layers: list[nn.Module] = []
    if variant.average_projection and stride > 1:
        # ceil_mode gives odd sizes the shape of the body's padded 3x3, and the padding that
        # ceil_mode adds must not enter the average.
        layers.append(nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    layers.append(_conv(in_channels, out_channels, 1, stride))
    if not variant.preactivation:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)
