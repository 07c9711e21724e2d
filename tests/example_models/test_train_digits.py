"""models/train_digits.py: it starts, and what it saves and draws."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import digits, train_digits

MODELS = Path(digits.__file__).parent


@pytest.mark.parametrize("arguments", [["models/train_digits.py"], ["-m", "models.train_digits"]])
def test_training_script_starts_in_both_ways(arguments: list[str], tmp_path: Path) -> None:
    """Run the script on a copy with one epoch, so that the shipped weights stay as they are."""
    copied = tmp_path / "models"
    copied.mkdir()
    for name in ("__init__.py", "digits.py", "train_digits.py"):
        text = (MODELS / name).read_text()
        copied.joinpath(name).write_text(
            text.replace(f"EPOCHS = {train_digits.EPOCHS}", "EPOCHS = 1")
        )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"  # small tensors: threads cost more than they bring
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(copied / "digits.safetensors") in result.stdout
    assert "held-out accuracy" in result.stdout
    assert sorted(path.suffix for path in copied.glob("digits.*")) == [".py", ".safetensors"]


def test_interrupted_save_keeps_the_old_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(partial: Path, data: bytes) -> int:
        with partial.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        train_digits.save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes() == b"old"


def test_shifts_move_each_image_by_at_most_one_pixel() -> None:
    images = torch.zeros(400, 1, 5, 6)
    images[:, :, 2, 3] = 1
    torch.manual_seed(0)
    shifted = train_digits.shift_randomly(images)
    assert shifted.shape == images.shape
    assert torch.equal(shifted.sum(dim=(1, 2, 3)), torch.ones(400))
    places = {(row, column) for _, _, row, column in shifted.nonzero().tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}
