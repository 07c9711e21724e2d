"""A small network, a nested one, and how their files are run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from passfx.graph.editor import Editor, Match
from passfx.passes.collapse import Collapse
from tests.helpers import randomize


class Block(nn.Module):
    """conv-norm-relu-conv-norm with an identity shortcut, then a projection shortcut."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x) + x)
        return torch.tanh(x) + self.project(x)


class Nested(nn.Module):
    """Reads a dict and a tuple, one of them by keyword, and returns both again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(
        self, items: dict[str, Tensor], *, pair: tuple[Tensor, list[Tensor]], flag: bool = True
    ) -> dict[str, Any]:
        left, (right,) = pair
        total = self.linear(items["a"]) - (2 * items["b"] if flag else items["b"])
        return {"total": total, "parts": (left * 2, [right - left, None])}


def make_block(channels: int = 4) -> Block:
    torch.manual_seed(0)
    return randomize(Block(channels)).eval()  # type: ignore[return-value]


def nested_inputs(seed: int = 0) -> tuple[dict[str, Tensor], tuple[Tensor, list[Tensor]]]:
    a, b, c, d = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(seed)).unbind()
    return {"a": a, "b": b}, (c, [d])


def run_file(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    feeds = dict(zip(names, (item.numpy() for item in inputs), strict=True))
    return [torch.from_numpy(np.asarray(item)) for item in session.run(None, feeds)]


def spoil_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make collapse wrong: the norm is left out."""

    def rewrite(self: Collapse, editor: Editor, match: Match) -> Any:
        return editor.call(match.nodes[0].target, *match.nodes[0].args)  # type: ignore[arg-type]

    monkeypatch.setattr(Collapse, "rewrite", rewrite)
