"""Files for a GPU: fused epilogues and half precision, from the model to the proof."""

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import passfx
from passfx.errors import ExportError, VerificationError
from passfx.jobs.optimize import Optimized
from passfx.report.model import Report
from tests.helpers import randomize


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x * self.scale)
        return torch.tanh(self.head(torch.relu(self.second(y) + y).mean(dim=(2, 3)) / self.scale))


X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


@functools.cache
def optimized(scale: float = 1.0, target: str = "cuda") -> Optimized:
    torch.manual_seed(0)
    return passfx.optimize(randomize(Net(scale)), (X,), target=target)


def operators(path: Path) -> dict[str, int]:
    names = [node.op_type for node in onnx.load(path).graph.node]
    return {name: names.count(name) for name in names}


def test_the_target_decides_about_epilogues(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = optimized().export(path)
    assert operators(path)["FusedConv"] == 3 and "Relu" not in operators(path)
    (run,) = [item for item in report.passes if item.name == "fuse-epilogues"]
    assert [item.what for item in run.rewrites] == [
        "conv + relu → FusedConv",
        "conv + relu → FusedConv",
        "conv + shortcut + relu → FusedConv",
    ]
    assert report.parity is not None and report.parity.rel_error <= report.parity.tolerance
    optimized().export(path, epilogues=False)
    assert "FusedConv" not in operators(path)
    optimized(target="cpu").export(path)
    assert "FusedConv" not in operators(path)
    optimized(target="cpu").export(path, epilogues=True)
    assert operators(path)["FusedConv"] == 3


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A file in half precision, and its report."""
    path = tmp_path_factory.mktemp("half") / "net.onnx"
    return path, optimized().export(path, "fp16")


def test_half_precision_is_proven_rounded(half: tuple[Path, Report]) -> None:
    path, report = half
    assert report.precision == "fp16" and operators(path)["Cast"] == 2
    assert "FusedConv" not in operators(path)
    (run,) = [item for item in report.passes if item.name == "lower-precision"]
    assert "operators in float16, 2 casts" in run.rewrites[0].what and not run.refusals
    proof = report.parity
    assert proof is not None and "rounded to half precision" in proof.provider
    assert 1e-5 < proof.rel_error <= 1e-2 < proof.tolerance
    assert {item.dtype for item in (*report.inputs, *report.outputs)} == {"float32"}


def test_half_inputs_and_outputs_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = optimized().export(path, "fp16", fp16_io=True)
    assert {item.dtype for item in (*report.inputs, *report.outputs)} == {"float16"}
    (given,) = passfx.runtime.Session(path).inputs
    assert given.dtype == torch.float16
    assert optimized().verify(path).precision == "fp16"


def test_a_half_file_is_proven_against_its_model(half: tuple[Path, Report]) -> None:
    path, _ = half
    report = optimized().verify(path)
    assert report.parity is not None and report.parity.passed
    with pytest.raises(VerificationError, match="disagrees with the model"):
        optimized().verify(path, rtol=1e-6)


def test_what_stays_is_reported(tmp_path: Path) -> None:
    report = optimized(scale=1e5).export(tmp_path / "net.onnx", "fp16")
    (run,) = [item for item in report.passes if item.name == "lower-precision"]
    assert any("its result reaches" in item.reason for item in run.refusals)
    assert {item.module for item in run.refusals} >= {"first.0"}
    assert report.parity is not None and report.parity.passed


def test_calibration_decides(tmp_path: Path) -> None:
    """Samples far smaller than the inputs hide the overflow, and the proof finds it."""
    np.savez(tmp_path / "small.npz", x=1e-6 * X.numpy())
    path = tmp_path / "net.onnx"
    with pytest.raises(VerificationError):
        optimized(scale=1e5).export(path, "fp16", calibration=tmp_path / "small.npz")
    assert not path.exists()


def test_an_accuracy_that_nothing_meets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no operator of this model can be in float16"):
        optimized().export(tmp_path / "net.onnx", "fp16", accuracy=1e-9)
    assert not list(tmp_path.iterdir())


def test_convert_takes_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    report = passfx.convert(Net(), path, (X,), precision="fp16", fp16_io=True, target="cuda")
    assert report.inputs[0].dtype == "float16"
    passfx.convert(Net(), path, (X,), target="cuda", epilogues=False)
    assert "FusedConv" not in operators(path)
