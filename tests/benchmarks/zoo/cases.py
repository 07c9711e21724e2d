"""What the zoo holds: names, and how each model and its inputs are made."""

import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks.zoo.wild import WILD

KNOWN = Path(__file__).with_name("models.json")  # what `families` writes
SMALL = 224  # pixels; a model that declares more is tried with this
VIDEO = {"s3d": (16, 224), "mvit": (16, 224)}  # frames and pixels that a model needs at least
FRAMES = (8, 112)


@dataclass(frozen=True)
class Case:
    """A model to try: `inputs(batch)` are fresh arguments, positional ones and by name."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int], tuple[tuple[Any, ...], dict[str, Any]]]


def all_cases() -> list[Case]:
    """All of them: timm's families, torchvision's builders, and those in the wild."""
    known = json.loads(KNOWN.read_text())
    timm = [Case(f"timm:{item['model']}", *_timm(**item)) for item in known["timm"]]
    torchvision = [
        Case(f"torchvision:{item['model']}", *_torchvision(**item)) for item in known["torchvision"]
    ]
    return [*timm, *torchvision, *(Case(name, *parts) for name, parts in WILD.items())]


def matching(*patterns: str) -> list[Case]:
    """Those whose names match one of the shell's patterns, or begin with it."""
    return [
        case
        for case in all_cases()
        if any(fnmatch.fnmatch(case.name, item) or case.name.startswith(item) for item in patterns)
    ]


def _timm(model: str, size: list[int], **_: Any) -> tuple[Any, ...]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(model)

    return build, partial(_image, tuple(size))


def _image(size: tuple[int, int, int], model: nn.Module, batch: int) -> tuple[Any, ...]:
    """An image of the declared size, or a smaller one where the model takes it."""
    channels, height, width = size
    if max(height, width) > SMALL + 32:
        smaller = torch.randn(batch, channels, SMALL, SMALL)
        try:
            with torch.no_grad():
                model.eval()(smaller[:1].to(next(model.parameters()).dtype))
            return (smaller,), {}
        except Exception:  # whatever the model says of a size that it does not take
            pass
    return (torch.randn(batch, *size),), {}


def _torchvision(model: str, kind: str, **_: Any) -> tuple[Any, ...]:
    def build() -> nn.Module:
        from torchvision import models

        backbone = {"weights_backbone": None} if kind == "segmentation" else {}
        return models.get_model(model, weights=None, **backbone)

    def inputs(_: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kind == "optical_flow":
            return (torch.rand(batch, 3, 128, 160), torch.rand(batch, 3, 128, 160)), {}
        if kind == "video":
            needs = (item for prefix, item in VIDEO.items() if model.startswith(prefix))
            frames, size = next(needs, FRAMES)
            return (torch.randn(batch, 3, frames, size, size),), {}
        if kind == "segmentation":
            return (torch.randn(batch, 3, 96, 128),), {}
        size = 299 if model == "inception_v3" else SMALL
        return (torch.randn(batch, 3, size, size),), {}

    return build, inputs
