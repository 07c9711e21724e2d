"""The networks this project started from: residual blocks that each have a "pass layer".

A pass layer is what stands on the skip path of a residual block: nothing when input and output
already have the same shape, otherwise whatever makes them agree.
"""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip, `relu(body(x) + pass_layer(x))` (arXiv:1512.03385).

    The convolutions keep their bias although a batch norm follows each of them.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pass_layer = nn.Sequential()
        if in_channels != out_channels:
            self.pass_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(N, out_channels, H, W)`."""
        identity = x
        if self.pass_layer:
            identity = self.pass_layer(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class PassCNN(nn.Module):
    """A convolution and a pass layer side by side, of which only the pass layer is returned.

    The first branch is dead, and is kept so on purpose: `conv1`, `bn1` and `relu` run and their
    result is dropped. A tool that reads this network should find the branch and say so.
    `PassCNNAdd` is the same network as its authors described it. In training mode the dead
    branch still moves the running statistics of `bn1`.

    Shapes: `(N, 3, H, W)` to `(N, 64, H, W)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pass_layer = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=1),
            nn.BatchNorm2d(64),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the pass layer's output alone, `(N, 64, H, W)`."""
        self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.pass_layer(x)
        return out


class PassCNNAdd(PassCNN):
    """`PassCNN` as its authors described it: the sum of both branches.

    Shapes: `(N, 3, H, W)` to `(N, 64, H, W)`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(bn1(conv1(x))) + pass_layer(x)`, `(N, 64, H, W)`."""
        out: Tensor = self.relu(self.bn1(self.conv1(x))) + self.pass_layer(x)
        return out


class Scale(nn.Module):
    """Multiply by one learnable scalar, which starts at `factor`; any shape."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Return `factor * x`, in the shape of `x`."""
        return self.factor * x


class Clamp(nn.Module):
    """Clamp to `[0, 6]`, which is what ReLU6 computes; any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` clamped to `[0, 6]`, in the shape of `x`."""
        return torch.clamp(x, 0, 6)


class SkipBlock(nn.Module):
    """`relu(body(x) + skip(x))` with a given skip path and a conv-bn-relu-conv-bn body.

    Shapes: `(N, channels, H, W)` to the same.
    """

    def __init__(self, channels: int, skip: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
        )
        self.skip = skip
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(N, channels, H, W)`."""
        out: Tensor = self.relu(self.body(x) + self.skip(x))
        return out


class PassVariants(nn.Module):
    """Four residual blocks whose skips scale, clamp, normalise and pass their input, in turn.

    Scale, batch norm and identity are affine in eval mode and could join a convolution. The
    clamp is not: a tool that takes every pass layer for an affine one gives wrong answers here.

    Shapes: `(N, channels, H, W)` to the same.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.scaled = SkipBlock(channels, Scale(0.5))
        self.clamped = SkipBlock(channels, Clamp())
        self.normalised = SkipBlock(channels, nn.BatchNorm2d(channels))
        self.passed = SkipBlock(channels, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's output, `(N, channels, H, W)`."""
        out: Tensor = self.passed(self.normalised(self.clamped(self.scaled(x))))
        return out
