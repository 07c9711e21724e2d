"""Samples for calibration: the user's own in batches, or random ones."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passfx.capture.program import Captured, capture
from passfx.errors import SourceError
from passfx.export.calibration import calibration_samples


class Pair(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


@pytest.fixture
def captured() -> Captured:
    return capture(Pair(), (torch.randn(2, 3), torch.tensor(2.0)))


NAMES = ("x", "scale")


def test_by_default_the_example_comes_first(captured: Captured) -> None:
    first, *others = calibration_samples(captured, NAMES)
    assert np.array_equal(first["x"], captured.args[0].numpy())
    assert others and all(sample["x"].shape == (2, 3) for sample in others)


def test_the_users_samples_come_in_batches(tmp_path: Path) -> None:
    found = capture(nn.ReLU(), (torch.randn(2, 3),))
    array = np.arange(15.0).reshape(5, 3)
    np.savez(tmp_path / "own.npz", x=array)
    samples = calibration_samples(found, ["x"], tmp_path / "own.npz")
    assert [sample["x"].shape for sample in samples] == [(2, 3), (2, 3)]
    assert samples[1]["x"].dtype == np.float32 and samples[1]["x"][0, 0] == 6.0


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros((2, 3))}, "has the arrays y; the inputs are x"),
        ({"x": np.zeros((2, 4))}, "the array x is 2x4; it must be Nx3 with N at least 2"),
        ({"x": np.zeros((1, 3))}, "the array x is 1x3; it must be Nx3 with N at least 2"),
        ({"x": np.zeros(3)}, "the array x is 3; it must be Nx3"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    found = capture(nn.ReLU(), (torch.randn(2, 3),))
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(SourceError, match=said):
        calibration_samples(found, ["x"], tmp_path / "own.npz")


def test_inputs_need_as_many_samples(tmp_path: Path, captured: Captured) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((6, 3)), scale=np.float32(1))
    with pytest.raises(SourceError, match="more samples of one input than of another"):
        calibration_samples(captured, NAMES, tmp_path / "own.npz")


def test_files_that_are_none(tmp_path: Path) -> None:
    found = capture(nn.ReLU(), (torch.randn(2, 3),))
    (tmp_path / "text.npz").write_text("numbers")
    for path in (tmp_path / "text.npz", tmp_path / "gone.npz"):
        with pytest.raises(SourceError, match=r"is not an \.npz file of arrays"):
            calibration_samples(found, ["x"], path)


@pytest.mark.parametrize("array", [np.full((2, 3), "x"), np.zeros((2, 3), complex)])
def test_arrays_without_numbers(tmp_path: Path, array: np.ndarray) -> None:
    found = capture(nn.ReLU(), (torch.randn(2, 3),))
    np.savez(tmp_path / "own.npz", x=array)
    with pytest.raises(SourceError, match="the array x holds .*, no numbers"):
        calibration_samples(found, ["x"], tmp_path / "own.npz")


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    found = capture(nn.ReLU(), (torch.randn(2, 3),))
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x", b"text")
    with pytest.raises(SourceError, match="the array x holds .*, no numbers"):
        calibration_samples(found, ["x"], tmp_path / "own.npz")
