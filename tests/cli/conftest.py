"""A folder to work in, with a source file, and a way to call the command line in-process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passfx.cli import main

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


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a source imports stays out of the tests that follow."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds `net.py` and an empty folder `out`."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def invoke() -> Invoke:
    """Call `passfx` with arguments; an exception that it does not handle fails the test."""

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(main, arguments, prog_name="passfx")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    return call
