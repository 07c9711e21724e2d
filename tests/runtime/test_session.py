"""Sessions: which provider runs a file, what comes back, and what is said without one."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import passfx
from models.pass_layer import PassCNNAdd
from passfx.errors import RuntimeUnavailableError
from passfx.runtime.session import Session, open_session, require_onnxruntime
from passfx.verify import relative_error
from tests.helpers import randomize


def session_of(folder: Path, model: nn.Module, *args: Tensor) -> Session:
    passfx.optimize(model, args).export(folder / "model.onnx", opset=22, verify=False)
    return open_session(folder / "model.onnx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_onnxruntime_runs_what_it_has_kernels_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = randomize(PassCNNAdd()).eval().to(dtype)
    x = torch.randn(2, 3, 5, 6).to(dtype)
    session = session_of(tmp_path, model, x)
    assert session.provider == "CPUExecutionProvider"
    (result,) = session.run([x])
    assert result.dtype == dtype
    assert relative_error(result, model(x)) <= 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_runs_the_rest(tmp_path: Path, dtype: torch.dtype) -> None:
    model = randomize(PassCNNAdd()).eval().to(dtype)
    x = torch.randn(2, 3, 5, 6).to(dtype)
    session = session_of(tmp_path, model, x)
    assert session.provider == "onnx.reference"
    (result,) = session.run([x])
    assert result.dtype == dtype
    assert relative_error(result, model(x)) <= 20 * torch.finfo(dtype).eps


class Echo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8,
     torch.bool],
)  # fmt: skip
def test_every_bit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.arange(-8, 8).reshape(4, 4).to(dtype)
    (result,) = session_of(tmp_path, Echo(), x).run([x])
    assert result.dtype == dtype
    assert torch.equal(result, x.reshape(-1))


def test_inputs_that_are_views_or_need_gradients(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    session = session_of(tmp_path, Echo(), x)
    view = torch.randn(3, 4).T
    assert torch.equal(session.run([view])[0], view.reshape(-1))
    leaf = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(session.run([leaf])[0], leaf.detach().reshape(-1))


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    class Swap(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return second + 1, first * 2, first

    a, b = torch.randn(2), torch.randn(3)
    results = session_of(tmp_path, Swap(), a, b).run([a, b])
    assert all(map(torch.equal, results, (b + 1, a * 2, a)))


def test_the_wrong_number_of_inputs_is_an_error(tmp_path: Path) -> None:
    session = session_of(tmp_path, Echo(), torch.randn(2, 2))
    with pytest.raises(ValueError, match="zip"):
        session.run([torch.randn(2, 2), torch.randn(2, 2)])


def test_without_onnxruntime_there_is_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    advice = r"not installed.*pip install 'passfx\[cpu\]'.*'passfx\[gpu\]'.*--no-verify"
    with pytest.raises(RuntimeUnavailableError, match=advice):
        require_onnxruntime()
    with pytest.raises(RuntimeUnavailableError, match=advice):
        open_session(tmp_path / "model.onnx")
