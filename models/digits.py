"""A small trained ResNet for the 8x8 handwritten digits that come with scikit-learn.

It holds the three kinds of block a fusing tool meets: identity skips, projection skips and
RepVGG's three branches in training form. `train_digits.py` made the weights beside this file.
The file stands alone, so that it can be loaded by its path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).resolve().with_name("digits.safetensors")

_EXAMPLE_ROWS = (  # grey levels 0 to 9, drawn by hand
    "00599600",
    "02940970",
    "00000980",
    "00048700",
    "00027950",
    "00000590",
    "00720970",
    "00589600",
)


class ResidualBlock(nn.Module):
    """`relu(body(x) + skip(x))`, the body being conv3x3-bn-relu-conv3x3-bn (arXiv:1512.03385).

    The skip is the identity when the shape stays, else a strided 1x1 convolution and batch norm.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shaped as the class says."""
        out: Tensor = self.relu(self.body(x) + self.skip(x))
        return out


class RepVGGBlock(nn.Module):
    """`relu(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x))`, RepVGG's training form (arXiv:2101.03697).

    In eval mode the three branches equal one 3x3 convolution with a bias.

    Shapes: `(N, channels, H, W)` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.identity = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(N, channels, H, W)`."""
        out: Tensor = self.relu(self.conv3x3(x) + self.conv1x1(x) + self.identity(x))
        return out


class DigitsResNet(nn.Module):
    """Three stages of 16, 32 and 48 channels at 8x8, 4x4 and 2x2 pixels, and a classifier.

    Shapes: `(N, 1, 8, 8)` grey levels in 0..1 to `(N, 10)` logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            RepVGGBlock(16),
            ResidualBlock(16, 16),
            ResidualBlock(16, 32, stride=2),
            RepVGGBlock(32),
            ResidualBlock(32, 32),
            ResidualBlock(32, 48, stride=2),
            RepVGGBlock(48),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(N, 10)`."""
        features = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(torch.flatten(features, 1))
        return logits


class Split(NamedTuple):
    """Images `(N, 1, 8, 8)` float32 in 0..1 and labels `(N,)` int64, in two disjoint parts."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_resnet(pretrained: bool = True) -> DigitsResNet:
    """Build the network in eval mode, with the trained weights unless `pretrained` is False.

    Raises FileNotFoundError if `digits.safetensors` is missing beside this file.
    """
    model = DigitsResNet()
    if pretrained:
        if not WEIGHTS.exists():
            raise FileNotFoundError(
                f"{WEIGHTS} is missing; make it with 'python models/train_digits.py'."
            )
        model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def example_inputs() -> tuple[Tensor]:
    """Return one hand-drawn 3, `(1, 1, 8, 8)` float32 in 0..1."""
    pixels = [[int(level) / 9 for level in row] for row in _EXAMPLE_ROWS]
    return (torch.tensor(pixels).reshape(1, 1, 8, 8),)


def load_split() -> Split:
    """Return scikit-learn's 1797 digits, a quarter of each class held out, always the same.

    Needs scikit-learn, which only this function imports.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )

    def to_images(grey: object) -> Tensor:
        return torch.as_tensor(grey, dtype=torch.float32).unsqueeze(1) / 16

    def to_labels(target: object) -> Tensor:
        return torch.as_tensor(target, dtype=torch.int64)

    return Split(
        to_images(train_images),
        to_labels(train_labels),
        to_images(test_images),
        to_labels(test_labels),
    )


def accuracy(predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Return the share, 0..1, of `images` whose largest logit is their label.

    `predict` maps `(N, 1, 8, 8)` images to `(N, 10)` logits; `labels` is `(N,)`.
    """
    with torch.no_grad():
        predicted = predict(images).argmax(dim=1)
    return (predicted == labels).double().mean().item()
