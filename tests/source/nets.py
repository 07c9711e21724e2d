"""The file of factories that the sources are read from."""

from pathlib import Path

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, kernel=(3, 3), norm=True, name="net"):
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel, padding="same")
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.name = name

    def forward(self, x, mask=None):
        return self.norm(self.conv(x))

def build(width=4):
    return Net(width)

def build_half():
    return Net().half()

def needs(width, depth):
    return Net(width)

def invents(width=4):
    return nn.Conv2d(3, 5, 3, groups=2)

def leaves():
    raise SystemExit("goodbye")

def number():
    return 3

ready = Net(5)
"""


def write(path: Path, inputs: str) -> Path:
    path.write_text(f"{FILE}\ndef example_inputs():\n    return {inputs}\n")
    return path
