"""Several threads at once: each gets what it would get alone, and nothing of the process moves."""

import logging
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import passfx
from tests.models import randomize


class Net(nn.Module):
    """A few foldable layers, and numbers of the default dtype."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (torch.arange(4) / 3 + 1)


def process() -> Any:
    logger = logging.getLogger("torch.onnx")
    return torch.get_default_dtype(), list(warnings.filters), sys.stderr, logger.level


def test_four_models_at_once(tmp_path: Path) -> None:
    x, before = torch.randn(1, 3, 4, 4), process()
    models = [randomize(Net(layers)).eval() for layers in range(1, 5)]
    seen: set[torch.dtype] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.update((torch.ones(2).dtype, (torch.arange(2) / 3).dtype))

    def work(layers: int) -> passfx.Optimized:
        optimized = passfx.optimize(models[layers - 1], (x,))
        optimized.export(tmp_path / f"{layers}.onnx")
        return optimized

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(1, 5)))
    finally:
        stop.set()
        thread.join()
    assert seen == {torch.float32}
    assert process() == before
    for layers, (model, optimized) in enumerate(zip(models, found, strict=True), 1):
        assert optimized.report.after.ops["conv2d"] == layers
        assert "batch_norm" not in optimized.report.after.ops
        with torch.no_grad():
            assert torch.allclose(optimized.module(x), model(x), atol=1e-5)
