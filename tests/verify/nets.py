"""A convolution with a norm to be folded."""

from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import randomize


class Folded(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=stride)
        self.norm = nn.BatchNorm2d(4)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))
