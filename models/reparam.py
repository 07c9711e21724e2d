"""Re-parameterised blocks in their training form: sums of branches that are one convolution.

| block                | branches                                       | source           |
| -------------------- | ---------------------------------------------- | ---------------- |
| `ACBlock`            | kxk, kx1 and 1xk                               | arXiv:1908.03930 |
| `RepVGGBlock`        | 3x3, 1x1, identity                             | arXiv:2101.03697 |
| `DiverseBranchBlock` | kxk, 1x1, 1x1 then kxk, 1x1 then average       | arXiv:2103.13425 |
| `EdgeBlock`          | 3x3, 1x1 then 3x3, Sobel or Laplacian          | ACM MM 2021      |
| `AlphaBlock`         | 3x3, α times 1x1                               | arXiv:2203.16250 |
| `MobileOneBlock`     | several kxk, 1x1, identity                     | arXiv:2206.04040 |
| `QARepVGGBlock`      | 3x3, bare 1x1, bare identity, then a norm      | arXiv:2212.01593 |
| `RepMixer`           | identity, scaled MobileOne block less a norm   | arXiv:2303.14189 |
| `DilatedBlock`       | 13x13 and five dilated, depthwise, then a norm | arXiv:2311.15599 |

No block has an activation: in its network one follows it. In eval mode each block is affine, and
equals one convolution. `H'` and `W'` are what a convolution of the block's kernel, stride and
padding gives.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _total(branches: Iterable[nn.Module], x: Tensor) -> Tensor:
    first, *others = branches
    out: Tensor = first(x)
    for branch in others:
        out = out + branch(x)
    return out


class RepVGGBlock(nn.Module):
    """`bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)` (arXiv:2101.03697).

    The identity branch is there where input and output have the same shape.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
            for kernel in (3, 1)
        )
        if stride == 1 and in_channels == out_channels:
            self.branches.append(nn.BatchNorm2d(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, shaped as the class says."""
        return _total(self.branches, x)


class MobileOneBlock(nn.Module):
    """`branches` copies of bn(conv(x)), bn(conv1x1(x)), bn(x), summed (arXiv:2206.04040).

    It comes depthwise (`groups` = channels) and pointwise (`kernel` = 1). The 1x1 branch, which
    the paper calls the scale branch, is there where the others are larger, and the identity
    branch where input and output have the same shape.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 4,
    ) -> None:
        super().__init__()
        kernels = [kernel] * branches + ([1] if kernel > 1 else [])
        self.branches = nn.ModuleList(
            conv_norm(in_channels, out_channels, size, stride, size // 2, groups=groups)
            for size in kernels
        )
        if stride == 1 and in_channels == out_channels:
            self.branches.append(nn.BatchNorm2d(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, shaped as the class says."""
        return _total(self.branches, x)


class ACBlock(nn.Module):
    """A square convolution and its middle column and row, each with a norm (arXiv:1908.03930).

    Where the padding is less than half of the kernel, the column sees an input that is cropped at
    the sides, and the row one that is cropped above and below.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, padding: int, stride: int = 1
    ) -> None:
        super().__init__()
        excess = padding - kernel // 2
        self.crop = max(0, -excess)
        across = max(0, excess)
        channels = in_channels, out_channels
        self.square = conv_norm(*channels, kernel, stride, padding)
        self.column = conv_norm(*channels, (kernel, 1), stride, (padding, across))
        self.row = conv_norm(*channels, (1, kernel), stride, (across, padding))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the three branches, shaped as the class says."""
        height, width = x.shape[2:]
        inner = slice(self.crop, height - self.crop), slice(self.crop, width - self.crop)
        out: Tensor = self.square(x) + self.column(x[..., inner[1]]) + self.row(x[:, :, inner[0]])
        return out


class DiverseBranchBlock(nn.Module):
    """Four branches: kxk, 1x1, 1x1 then kxk, 1x1 then average, each with norms (arXiv:2103.13425).

    In the last two the norm after the 1x1 convolution is followed by a border of what that norm
    makes of 0, instead of zeros. Padding the 1x1 convolution, which has no bias, gives that border.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        half = kernel // 2
        channels = in_channels, out_channels
        self.square = conv_norm(*channels, kernel, stride, half, groups=groups)
        self.pointwise = conv_norm(*channels, 1, stride, groups=groups)
        self.sequence = nn.Sequential(
            conv_norm(in_channels, in_channels, 1, padding=half, groups=groups),
            conv_norm(*channels, kernel, stride, groups=groups),
        )
        self.average = nn.Sequential(
            conv_norm(*channels, 1, padding=half, groups=groups),
            nn.AvgPool2d(kernel, stride),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the four branches, shaped as the class says."""
        return _total((self.square, self.pointwise, self.sequence, self.average), x)


SOBEL_X = ((1, 0, -1), (2, 0, -2), (1, 0, -1))
SOBEL_Y = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))
LAPLACIAN = ((0, 1, 0), (1, -4, 1), (0, 1, 0))


class EdgeFilter(nn.Module):
    """A fixed 3x3 filter on each channel, times a learned factor, plus a learned bias.

    Shapes: `(N, channels, H, W)` to `(N, channels, H - 2, W - 2)`.
    """

    mask: Tensor

    def __init__(self, channels: int, mask: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor(mask, dtype=torch.get_default_dtype()))
        self.scale = nn.Parameter(0.1 * torch.randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(0.1 * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered channels, shaped as the class says."""
        return functional.conv2d(x, self.scale * self.mask, self.bias, groups=len(self.bias))


class EdgeBlock(nn.Module):
    """The edge-oriented convolution block of ECBSR: 3x3, and four filters after a 1x1 each.

    The four are a 3x3, the Sobel filters and the Laplacian. What stands between a 1x1 and its
    filter has the bias of the 1x1 as its border; padding the 1x1 itself gives that border.

    Zhang et al. 2021, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
    Devices", doi:10.1145/3474085.3475291.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`; with `identity` both agree.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int = 2, identity: bool = False
    ) -> None:
        super().__init__()
        middle = expansion * out_channels
        self.branches = nn.ModuleList(
            [
                nn.Conv2d(in_channels, out_channels, 3, padding=1),
                nn.Sequential(
                    nn.Conv2d(in_channels, middle, 1, padding=1), nn.Conv2d(middle, out_channels, 3)
                ),
            ]
        )
        for mask in (SOBEL_X, SOBEL_Y, LAPLACIAN):
            pointwise = nn.Conv2d(in_channels, out_channels, 1, padding=1)
            self.branches.append(nn.Sequential(pointwise, EdgeFilter(out_channels, mask)))
        if identity:
            self.branches.append(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, shaped as the class says."""
        return _total(self.branches, x)


class AlphaBlock(nn.Module):
    """`bn(conv3x3(x)) + α · bn(conv1x1(x))` with a learned α, of PP-YOLOE (arXiv:2203.16250).

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.square = conv_norm(in_channels, out_channels, 3, padding=1)
        self.pointwise = conv_norm(in_channels, out_channels, 1)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum, shaped as the class says."""
        out: Tensor = self.square(x) + self.alpha * self.pointwise(x)
        return out


class QARepVGGBlock(nn.Module):
    """`bn(bn(conv3x3(x)) + conv1x1(x) + x)`: RepVGG made fit for int8, V2 (arXiv:2212.01593).

    The identity branch is there where input and output have the same shape.

    Shapes: `(N, in_channels, H, W)` to `(N, out_channels, H', W')`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_norm(in_channels, out_channels, 3, stride, padding=1),
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            ]
        )
        if stride == 1 and in_channels == out_channels:
            self.branches.append(nn.Identity())
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised sum, shaped as the class says."""
        out: Tensor = self.norm(_total(self.branches, x))
        return out


class RepMixer(nn.Module):
    """`x + scale · (mixer(x) - norm(x))`, FastViT's token mixer (arXiv:2303.14189).

    The mixer is a depthwise `MobileOneBlock` of one branch, the norm a batch norm.

    Shapes: `(N, channels, H, W)` to the same.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.mixer = MobileOneBlock(channels, channels, kernel, groups=channels, branches=1)
        self.norm = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed input, in the shape of `x`."""
        out: Tensor = x + self.scale * (self.mixer(x) - self.norm(x))
        return out


class DilatedBlock(nn.Module):
    """UniRepLKNet's dilated block: a 13x13 depthwise convolution beside five small, dilated ones.

    Each has a batch norm, and one more follows their sum (arXiv:2311.15599).

    Shapes: `(N, channels, H, W)` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm(
                channels, channels, kernel, 1, dilation * (kernel // 2), dilation, groups=channels
            )
            for kernel, dilation in ((13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised sum of the branches, in the shape of `x`."""
        out: Tensor = self.norm(_total(self.branches, x))
        return out
