"""Sessions: which provider runs a file, what comes back, and what is said without one."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import passfx
from models.pass_layer import PassCNNAdd
from passfx.errors import RuntimeUnavailableError, SourceError
from passfx.export.arrays import to_numpy
from passfx.runtime import Options
from passfx.runtime.reference import Runner, open_session
from passfx.runtime.session import Session, require_onnxruntime
from passfx.verify.error import relative_error
from tests.helpers import randomize


def session_of(folder: Path, model: nn.Module, *args: Tensor) -> Runner:
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


def test_the_reference_takes_no_weights(tmp_path: Path) -> None:
    """Files of before IR version 4 list them among the inputs."""
    kind = TensorProto.DOUBLE
    shapes = {"x": [1, 1, 2, 2], "w": [1, 1, 1, 1], "y": [1, 1, 2, 2]}
    x, w, y = (helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items())
    weight = helper.make_tensor("w", kind, shapes["w"], [3.0])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x, w], [y], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    assert session.provider == "onnx.reference"
    given = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(session.run([given])[0], 3 * given)


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
    with pytest.raises(ValueError, match=r"takes 1 input\(s\), not 2"):
        session.run([torch.randn(2, 2), torch.randn(2, 2)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.randn(2, 3), "x is float32 2x2, not float32 2x3"),
        (torch.randn(4), "x is float32 2x2, not float32 4"),
        (torch.randn(2, 2).double(), "x is float32 2x2, not float64 2x2"),
    ],
)
def test_the_wrong_input_is_an_error(tmp_path: Path, given: Tensor, said: str) -> None:
    session = session_of(tmp_path, Echo(), torch.randn(2, 2))
    with pytest.raises(ValueError, match=said):
        session.run([given])


class Difference(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


def test_inputs_by_order_by_name_and_alone(tmp_path: Path) -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    session = session_of(tmp_path, Difference(), a, b)
    assert isinstance(session, Session)
    for given in (
        [a, b],
        (a, b.numpy()),
        {"second": b, "first": a},
        {"first": a.numpy(), "second": b},
    ):
        assert torch.equal(session.run(given)[0], a - b)
    for x in (torch.randn(1, 3), torch.randn(1, 1)):
        alone = session_of(tmp_path, Echo(), x)
        for given in (x, x.numpy(), {"x": x}, [x.numpy()]):
            assert torch.equal(alone.run(given)[0], x.reshape(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_arrays_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.arange(-8, 8).reshape(4, 4).to(dtype)
    (result,) = session_of(tmp_path, Echo(), x).run(to_numpy(x))
    assert result.dtype == dtype and torch.equal(result, x.reshape(-1))


def test_arrays_that_are_views_or_cannot_be_written(tmp_path: Path) -> None:
    session = session_of(tmp_path, Echo(), torch.randn(4, 3))
    array = np.random.default_rng(0).random((3, 8), np.float32)
    fixed = array[:, :4].T.copy()
    fixed.setflags(write=False)
    for given in (array[:, :4].T, array[::-1, ::2].T, fixed):
        assert np.array_equal(session.run(given)[0].numpy(), given.reshape(-1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first": torch.ones(2)}, "the model takes first, second, not first$"),
        ({"first": torch.ones(2), "third": torch.ones(2)}, "takes first, second, not first, third"),
        ({}, "the model takes first, second, not none"),
        (torch.ones(2), r"takes 2 input\(s\), not 1"),
        ([torch.ones(2), [1.0, 1.0]], "second is given as list; give a torch tensor or a numpy"),
        ([torch.ones(2), np.ones(2)], "second is float32 2, not float64 2"),
        ([torch.ones(2), np.array(["a"])], "second is given as <U1, which torch does not have"),
    ],
)  # fmt: skip
def test_wrong_names_and_kinds_are_an_error(tmp_path: Path, given: Any, said: str) -> None:
    session = session_of(tmp_path, Difference(), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=said):
        session.run(given)


def test_any_size_that_varies_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    passfx.convert(Echo(), path, (torch.randn(2, 2),), dynamic_batch=True)
    session = Session(path)
    assert session.inputs[0].shape[1] == 2 and not isinstance(session.inputs[0].shape[0], int)
    for size in (1, 2, 5):
        x = torch.randn(size, 2)
        assert torch.equal(session.run([x])[0], x.reshape(-1))
    with pytest.raises(ValueError, match="x2, not float32 2x3"):
        session.run([torch.randn(2, 3)])


def test_results_are_the_callers_to_keep(tmp_path: Path) -> None:
    session = session_of(tmp_path, Echo(), torch.randn(2, 2))
    x = torch.randn(2, 2)
    (first,) = session.run([x])
    kept = first.clone()
    session.run([torch.zeros(2, 2)])
    assert torch.equal(first, kept)
    first.fill_(7.0)
    assert torch.equal(session.run([x])[0], kept)
    assert torch.equal(x.reshape(-1), kept)
    del session
    assert torch.equal(first, torch.full((4,), 7.0))


def test_tensors_are_not_copied(tmp_path: Path) -> None:
    """What is bound is the tensor's own memory: ONNX Runtime reads it, and writes what it gives."""
    session = session_of(tmp_path, Echo(), torch.randn(2, 2))
    assert isinstance(session, Session)
    bound: list[int] = []
    inner = session._session

    class Spy:
        def io_binding(self) -> object:
            binding = inner.io_binding()
            bind = binding.bind_input
            binding.bind_input = lambda *args: (bound.append(args[-1]), bind(*args))
            return binding

        run_with_iobinding = inner.run_with_iobinding

    session._session = Spy()
    x = torch.randn(2, 2)
    session.run([x])
    assert bound == [x.data_ptr()]


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    passfx.convert(Echo(), path, (torch.randn(2, 2),))
    if "CUDAExecutionProvider" in require_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(RuntimeUnavailableError, match=r"no CUDAExecutionProvider.*passfx\[gpu\]"):
        Session(path, Options("cuda"))


def test_a_provider_that_is_silently_not_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime falls back to the CPU where a provider is listed but does not load."""
    path = tmp_path / "model.onnx"
    passfx.convert(Echo(), path, (torch.randn(2, 2),))
    onnxruntime = require_onnxruntime()
    opened = onnxruntime.InferenceSession

    def fall_back(model: str, options: object, **_: object) -> object:
        return opened(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with pytest.raises(RuntimeUnavailableError, match="asked for, but ONNX Runtime uses CPU"):
        Session(path, Options("cuda"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone.onnx does not exist"):
        Session(tmp_path / "gone.onnx")


def test_without_onnxruntime_there_is_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_of(tmp_path, Echo(), torch.randn(2, 2))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    advice = r"not installed.*pip install 'passfx\[cpu\]'.*'passfx\[gpu\]'"
    with pytest.raises(RuntimeUnavailableError, match=advice):
        require_onnxruntime()
    with pytest.raises(RuntimeUnavailableError, match=advice):
        open_session(tmp_path / "model.onnx")
