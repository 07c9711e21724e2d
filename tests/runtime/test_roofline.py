"""The least time of a file: what is counted, and how."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import passfx
from passfx.errors import ExportError
from passfx.runtime.roofline import Peaks, ideal_seconds, measure_peaks
from passfx.target import CPU

ONLY_MACS = Peaks({"float32": 1.0}, float("inf"))
ONLY_BYTES = Peaks({"float32": float("inf")}, 1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.head = nn.Linear(2 * 8 * 10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(torch.relu(self.conv(x))).flatten(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_those_of_the_captured_graph(tmp_path: Path, batch: int) -> None:
    x = torch.randn(batch, 4, 8, 10)
    report = passfx.convert(Net(), tmp_path / "net.onnx", (x,))
    assert ideal_seconds(tmp_path / "net.onnx", [x.shape], ONLY_MACS) == report.after.macs


def test_a_size_that_varies_is_filled_in(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 8, 10)
    report = passfx.convert(Net(), tmp_path / "net.onnx", (x,), dynamic_batch=True)
    for batch in (1, 5):
        shape = (batch, 4, 8, 10)
        found = ideal_seconds(tmp_path / "net.onnx", [shape], ONLY_MACS)
        assert found == batch * report.after.macs  # counted for one, though captured at two


def test_bytes_are_what_each_operator_reads_and_writes(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.neg(x))

    passfx.convert(Twice(), tmp_path / "net.onnx", (torch.randn(3, 5),))
    assert ideal_seconds(tmp_path / "net.onnx", [(3, 5)], ONLY_BYTES) == 4 * 15 * 4


def test_fused_convolutions_count_too(tmp_path: Path) -> None:
    shape, weight = [1, 2, 4, 4], [2, 2, 1, 1]
    node = helper.make_node(
        "FusedConv", ["x", "w", "", "z"], ["y"], domain="com.microsoft", activation="Relu"
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xz"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, weight, [1.0] * 4)],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains), tmp_path / "net.onnx")
    shapes = [tuple(shape)] * 2
    assert ideal_seconds(tmp_path / "net.onnx", shapes, ONLY_MACS) == 32 * 2
    assert ideal_seconds(tmp_path / "net.onnx", shapes, ONLY_BYTES) == (3 * 32 + 4) * 4


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    """As in files of before IR version 4."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xwy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0] * 4)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", values[:2], values[2:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "net.onnx")
    assert ideal_seconds(tmp_path / "net.onnx", [(2, 2)], ONLY_MACS) == 8


def test_an_operator_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="somewhere")
    after = helper.make_node("Relu", ["y"], ["z"])
    graph = helper.make_graph(
        [node, after],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("somewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="the shape of y cannot be inferred"):
        ideal_seconds(tmp_path / "net.onnx", [(2,)], ONLY_MACS)


def test_peaks_are_positive_and_float32_is_measured() -> None:
    peaks = measure_peaks(CPU)
    assert peaks.macs.keys() == {"float32"}
    assert min(*peaks.macs.values(), peaks.bandwidth) > 1e6


def test_peaks_are_those_of_the_best_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product, a convolution and copies, each in as many ways and sizes as there are."""
    timed = iter([1.0] * 3 + [1e-3] + [1.0] * 6 + [1e-6])
    monkeypatch.setattr("passfx.runtime.roofline._best", lambda *_: next(timed))
    peaks = measure_peaks(CPU)
    assert peaks.macs == {"float32": 128 * 56 * 56 * 128 * 9 / 1e-3}
    assert peaks.bandwidth == 2 * 2**26 * 4 / 1e-6
    assert next(timed, None) is None


def test_what_only_reshapes_moves_nothing(tmp_path: Path) -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.neg(x).reshape(5, 3)

    passfx.convert(View(), tmp_path / "net.onnx", (torch.randn(3, 5),))
    assert ideal_seconds(tmp_path / "net.onnx", [(3, 5)], ONLY_BYTES) == 2 * 15 * 4
