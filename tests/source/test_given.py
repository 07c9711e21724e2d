"""Models and inputs that are given themselves, in the forms in which people write them."""

import warnings
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import passfx
from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from tests.helpers import randomize

X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = x + self.norm(self.conv(x))
        return y if scale is None else y * scale


class OfDict(nn.Module):
    def forward(self, batch: Any) -> Tensor:
        return batch["x"] + batch["y"]  # type: ignore[no-any-return]


def net() -> nn.Module:
    return randomize(Net()).eval()


def given(model: Any, args: Any = (), kwargs: Any = None) -> tuple[Any, Any]:
    source = load_source(SourceSpec(model, args, kwargs))
    return source.args, source.kwargs


def test_a_lone_tensor_is_the_one_input() -> None:
    args, kwargs = given(net(), X, {"scale": X})
    assert args[0] is X
    assert kwargs["scale"] is X
    assert given(net(), [X])[0][0] is X
    module = passfx.optimize(model := net(), X).module
    torch.testing.assert_close(module(X), model(X))
    assert len(passfx.find_shortcuts(model, X)) == 1
    transformed = passfx.PassTransformer(torch.fx.symbolic_trace(OfDict()), {"x": X, "y": X})
    torch.testing.assert_close(transformed.transform()({"x": X, "y": X}), 2 * X)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_dict_is_inputs_by_name_where_forward_has_them_all(kind: Any) -> None:
    args, kwargs = given(net(), kind({"x": X, "scale": X}))
    assert args == ()
    assert set(kwargs) == {"x", "scale"}
    args, kwargs = given(OfDict(), {"x": X, "y": X})
    assert set(args[0]) == {"x", "y"}
    assert not kwargs
    args, kwargs = given(net(), {"x": X}, {"scale": X})
    assert isinstance(args[0], dict)


def test_a_dict_for_a_program() -> None:
    program = torch.export.export(net(), (), {"x": X, "scale": X})
    assert set(given(program, {"x": X, "scale": X})[1]) == {"x", "scale"}
    program = torch.export.export(OfDict(), ({"x": X, "y": X},))
    assert set(given(program, {"x": X, "y": X})[0][0]) == {"x", "y"}


def test_a_source_as_text_is_a_model_too(net: Path) -> None:
    source = f"{net}:build"
    optimized = passfx.optimize(source)
    assert optimized.report.source == source
    assert optimized.module(torch.randn(1, 3, 6, 7)).shape == (1, 4, 6, 7)
    assert passfx.find_shortcuts(source) == ()
    assert passfx.optimize(source, torch.randn(2, 3, 4, 4)).report.inputs[0].shape == (2, 3, 4, 4)
    with pytest.raises(SourceError, match="has no factory 'biuld'"):
        passfx.optimize(f"{net}:biuld")


# Wrappers.


class Wrapper(nn.Module):
    """As a training framework has it: a network, its loss, and a trainer that is not there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = nn.CrossEntropyLoss()

    @property
    def trainer(self) -> Any:
        raise RuntimeError("not attached to a trainer")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, number: int) -> Tensor:
        self.trainer.log(number)
        return self.loss(self(batch[0]), batch[1])  # type: ignore[no-any-return]


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", rank=0, world_size=1, init_method=store)
    yield
    distributed.destroy_process_group()


WRAPPERS: dict[str, Any] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": torch.compile,
    "both": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
}


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_runs_a_model_elsewhere_stands_for_it(name: str) -> None:
    model = net()
    with warnings.catch_warnings(action="ignore"):  # of torch about itself
        wrapped = WRAPPERS[name](model)
    optimized = passfx.optimize(wrapped, X)
    assert optimized.report.source == "Net"
    assert [item.name for item in optimized.report.inputs] == ["x"]
    assert {shortcut.module for shortcut in optimized.shortcuts} == {""}
    torch.testing.assert_close(optimized.module(X), model(X))


@pytest.mark.parametrize("kind", [Wrapper, torch.optim.swa_utils.AveragedModel, nn.Sequential])
def test_wrappers_with_a_forward_of_their_own(kind: Any) -> None:
    model = net()
    optimized = passfx.optimize(kind(model), X)
    torch.testing.assert_close(optimized.module(X), model(X))


def test_a_compiled_part_is_captured() -> None:
    model = net()
    with warnings.catch_warnings(action="ignore"):  # of torch about itself
        part = nn.Sequential(torch.compile(model), nn.ReLU())  # type: ignore[arg-type]
    torch.testing.assert_close(passfx.optimize(part, X).module(X), model(X).relu())


def test_hooks_of_a_wrapper_are_part_of_the_model() -> None:
    wrapped = nn.DataParallel(model := net())
    wrapped.register_forward_hook(lambda *called: called[-1] * 3)
    torch.testing.assert_close(passfx.optimize(wrapped, X).module(X), model(X) * 3)
