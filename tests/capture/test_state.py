"""A model is after capture what it was before, to the last attribute."""

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

import passfx
from models.pass_layer import PassCNN, PassCNNAdd, PassVariants
from models.resnet import resnet18
from passfx.capture.program import capture
from passfx.capture.state import preserved
from passfx.errors import CaptureError
from tests.models import BLOCKS


def everything(item: Any, seen: tuple[int, ...] = ()) -> Any:
    """All that a model holds, by identity and, for tensors, by value."""
    if id(item) in seen:
        return id(item)
    inner = (*seen, id(item))
    own: Any = None
    if isinstance(item, Tensor):
        own = [item.detach().numpy().tobytes(), item.data_ptr(), list(vars(item))]
    elif isinstance(item, dict):
        own = [(key, everything(child, inner)) for key, child in item.items()]
    elif isinstance(item, list | tuple | deque):
        own = [everything(child, inner) for child in item]
    elif isinstance(item, nn.Module | SimpleNamespace):
        own = everything(vars(item), inner)
    return type(item), id(item), own


class Head(nn.Module):
    """A detection head that keeps its anchors until the size of the image changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.shape: Any = None
        self.anchors = torch.empty(0)
        self.strides = torch.tensor([8.0, 16.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shape != y.shape:
            self.shape = y.shape
            self.anchors = torch.arange(y.shape[-1], dtype=y.dtype) + 0.5
            self.centers = self.anchors * y.mean()
        return (y + self.anchors) * self.strides[0]


class KeepsEverything(nn.Module):
    """Writes wherever a module can: attributes, containers, objects, hooks, flags, weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.calls = 0
        self.seen: list[Any] = []
        self.last: deque[Any] = deque(maxlen=2)
        self.cache: dict[str, Any] = {"deep": {"list": [1, 2]}}
        self.ordered = OrderedDict(a=1, b=2)
        self.names = {"a"}
        self.state = SimpleNamespace(step=torch.zeros(2), pair=([], 1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.last.append(x)
        self.cache["deep"]["list"][0] = x
        self.cache["new"] = {"x": x}
        self.ordered.move_to_end("a")
        self.names.add("b")
        self.state.step = x
        self.state.pair[0].append(x)
        self.inner.features = x  # type: ignore[assignment]
        self.inner.weight.note = x  # type: ignore[attr-defined]
        self.inner.register_forward_hook(lambda *_: None)
        self.inner.training = True
        return self.inner(x)


class Fails(KeepsEverything):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else x


SUITE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (PassCNN, (1, 3, 4, 4)),
    "cnn add": (PassCNNAdd, (1, 3, 4, 4)),
    "variants": (PassVariants, (1, 8, 5, 5)),
    "resnet": (lambda: resnet18("preact"), (1, 3, 32, 32)),
    "traced": (lambda: symbolic_trace(PassCNNAdd()), (1, 3, 4, 4)),
    "head": (Head, (1, 3, 4, 4)),
    "keeps everything": (KeepsEverything, (2, 3)),
    **{name: (build, (2, 4, 11, 14)) for name, build in BLOCKS.items()},
}


@pytest.mark.parametrize("name", SUITE)
def test_capture_leaves_the_model_as_it_was(name: str) -> None:
    build, shape = SUITE[name]
    model = build()
    before = everything(model)
    capture(model, (torch.randn(shape),))
    assert everything(model) == before


@pytest.mark.parametrize(
    ("model", "shape"), [(Fails(), (2, 3)), (Fails(), (2, 4)), (Head(), (1, 4, 2, 2))]
)
def test_a_failed_capture_leaves_the_model_as_it_was(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    before = everything(model)
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(shape),))
    assert everything(model) == before


def test_a_head_that_keeps_its_anchors_works_before_and_after() -> None:
    x, model = torch.randn(1, 3, 4, 4), Head().eval()
    with torch.no_grad():
        module = passfx.optimize(model, (x,)).module
        assert model.shape is None and not hasattr(model, "centers")
        wanted = model(x)
        assert torch.allclose(module(x), wanted)
        anchors = model.anchors
        passfx.optimize(model, (torch.randn(1, 3, 6, 6),))
        assert model.anchors is anchors
        assert torch.equal(model(x), wanted)


def test_a_block_that_raises_is_undone_too() -> None:
    model = KeepsEverything()
    before = everything(model)
    with contextlib.suppress(ZeroDivisionError), preserved(model, weights=True) as state:
        model(torch.ones(1, 3))
        with torch.no_grad():
            model.inner.weight.data.zero_()
            model.inner.bias.data = torch.ones(3)
            model.state.pair[0].append(1)
        changed = state.changed()
        assert {"calls", "seen[0]", "cache['deep']['list'][0]", "inner.features"} <= {*changed}
        assert state.written() == ["inner.bias", "inner.weight"]
        raise ZeroDivisionError
    assert everything(model) == before


def test_what_did_not_change_is_not_touched() -> None:
    model = KeepsEverything()
    version = model.inner.weight._version
    with preserved(model, weights=True) as state:
        assert state.changed() == [] and state.written() == []
    assert model.inner.weight._version == version


def test_an_exported_program_stays_as_it_was() -> None:
    model, x = PassCNNAdd().eval(), torch.randn(1, 3, 4, 4)
    program = torch.export.export(model, (x,))
    before, code = everything(program.state_dict), program.graph_module.code
    optimized = passfx.optimize(program)
    assert everything(program.state_dict) == before
    assert program.graph_module.code == code
    with torch.no_grad():
        assert torch.allclose(program.module()(x), optimized.module(x), atol=1e-5)
