"""The source that the commands are given, and how they are called."""

from collections.abc import Callable

from click.testing import Result

SOURCE = "net.py:build"
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return torch.relu(y + torch.sigmoid(y))

class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def build(width=4):
    return Net(width)

def needs(width):
    return Net(width)

def invents():
    return nn.Conv2d(3, 5, 3, groups=2)

def example_inputs():
    return torch.randn(1, 3, 6, 6)
"""

Invoke = Callable[..., Result]
