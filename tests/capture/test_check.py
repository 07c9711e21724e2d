"""What cannot be captured is one sentence."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import passfx
from passfx.errors import CaptureError, SourceError

X = torch.randn(2, 3)


class Table(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table @ x


def _quiet(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return make()


def _sparse_weight() -> nn.Module:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(4, 3).to_sparse())
    return model


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "an object": (object, "object is no model: give an instance of torch.nn.Module"),
    "nothing": (lambda: None, "NoneType is no model"),
    "a class": (lambda: nn.Linear, "the class Linear is no model"),
    "a function": (lambda: torch.relu, r"is no model: give .* whose forward\(\) calls it"),
    "a state dict": (nn.Linear(3, 4).state_dict, r"OrderedDict is no model: load it into one"),
    "a scripted function": (
        lambda: torch.jit.trace(torch.relu, X),
        "ScriptFunction is no model: give .* that calls the function from which it was scripted",
    ),
    "scripted": (
        lambda: torch.jit.script(nn.Linear(3, 4)),
        "is TorchScript or holds some, .*; give the module that was scripted or traced, or what "
        "torch.export makes of it",
    ),
    "traced": (lambda: torch.jit.trace(nn.Linear(3, 4), X), "is TorchScript or holds some"),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 4))),
        "Sequential is TorchScript or holds some",
    ),
    "meta": (lambda: nn.Linear(3, 4, device="meta"), "parameter weight of Linear is on the meta"),
    "a sparse buffer": (lambda: Table(torch.eye(2).to_sparse()), "buffer table of Table is sparse"),
    "a csr buffer": (lambda: Table(torch.eye(2).to_sparse_csr()), r"sparse \(sparse_csr\)"),
    "a sparse weight": (_sparse_weight, "parameter weight of Linear is sparse"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str) -> None:
    make, message = MODELS[case]
    with pytest.raises((SourceError, CaptureError), match=message) as caught:
        passfx.optimize(_quiet(make), (X,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("args", "message"), [
    ((X.to("meta"),), "the input .0. of Linear is on the meta device"),
    ((X.to_sparse(),), "the input .0. of Linear is sparse"),
    (3, "args is a tensor, a tuple of inputs or a dict of them, not int"),
    (X.numpy(), "args is a tensor, .*, not ndarray"),
    ((X.numpy(),), r"the input \[0\] is a numpy.ndarray; give torch.as_tensor of it"),
    ((2, 3), r"args is a tuple of inputs, not a shape: give torch\.randn\(2, 3\)"),
])  # fmt: skip
def test_inputs(args: Any, message: str) -> None:
    with pytest.raises((SourceError, CaptureError), match=message):
        passfx.optimize(nn.Linear(3, 4), args)


@pytest.mark.parametrize("shapes", [
    3, "a", Dim.DYNAMIC, (5,), ({7: Dim.DYNAMIC},), ({-3: Dim.DYNAMIC},), ({"a": Dim.DYNAMIC},),
    ({None: Dim.AUTO},), ((Dim.DYNAMIC,) * 5,), ({0: "b"},), ({0: 2.5},), [[[Dim.DYNAMIC]]],
    {"y": {0: Dim.DYNAMIC}}, (None, None),
])  # fmt: skip
def test_malformed_dynamic_shapes(shapes: Any) -> None:
    with pytest.raises(CaptureError, match="dynamic|axes") as caught:
        passfx.optimize(nn.Linear(3, 4), (X,), dynamic_shapes=shapes)
    assert "\n" not in str(caught.value)


class Both(nn.Module):
    def forward(self, x: torch.Tensor, *, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x + y - z


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    dim = {0: Dim("batch", max=5)}
    kwargs = {"y": X.clone(), "z": X.clone()}
    shapes = {"x": dim, "y": dim, "z": dim}
    return torch.export.export(Both(), (X,), kwargs, dynamic_shapes=shapes)


@pytest.mark.parametrize(("x", "kwargs", "message"), [
    (torch.randn(9, 3), {}, "to be <= 5, but got 9"),
    (torch.randn(2, 4), {}, "to be equal to 3, but got 4"),
    (torch.randn(3, 3), {}, "to be equal to 3, but got 2"),
    (torch.randn(3), {}, "number of dimensions"),
    (X.double(), {}, "takes float32 where float64 is given"),
    ("x", {}, "to be a tensor"),
    (X, {"w": X}, "keyword"),
])  # fmt: skip
def test_inputs_that_a_program_does_not_take(
    program: torch.export.ExportedProgram, x: Any, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(CaptureError, match=f"the exported program .*{message}") as caught:
        passfx.optimize(program, (x,), {"y": X, "z": X, **kwargs})
    assert "\n" not in str(caught.value)


def test_keywords_of_a_program_in_any_order(program: torch.export.ExportedProgram) -> None:
    y, z = torch.randn(2, 3), torch.randn(2, 3)
    optimized = passfx.optimize(program, (X,), {"z": z, "y": y})
    assert optimized.captured.kwargs["y"] is y
    torch.testing.assert_close(optimized.module(X, y=y, z=z), X + y - z)


def test_dynamic_shapes_of_a_program(program: torch.export.ExportedProgram) -> None:
    with pytest.raises(CaptureError, match="those of an exported program were fixed"):
        passfx.optimize(program, dynamic_shapes=({0: Dim.DYNAMIC},))
