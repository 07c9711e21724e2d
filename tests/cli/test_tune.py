"""`passfx tune`: what it prints and writes, and wrong use."""

import json
import re
import shutil
from pathlib import Path

import onnxruntime
import pytest

from passfx.runtime import load
from tests.cli.net import Invoke


@pytest.fixture
def model(folder: Path, made: Path) -> Path:
    return Path(shutil.copy(made, folder / "net.onnx"))


def test_it_prints_what_was_measured_and_writes_the_sidecar(model: Path, invoke: Invoke) -> None:
    result = invoke("tune", "net.onnx", "--budget", "0.3")
    assert result.exit_code == 0, result.stderr
    assert "as given, default" in result.stdout and "threads" in result.stdout
    assert re.search(r"^Kept +as given.*: [\d.]+ times as fast as an untuned", result.stdout, re.M)
    assert "net.passfx.json" in result.stdout
    assert load(model).provider == "CPUExecutionProvider"


def test_json(model: Path, invoke: Invoke) -> None:
    result = invoke("tune", "net.onnx", "--budget", "0.2", "--json", "-")
    found = json.loads(result.stdout)
    assert found["options"]["provider"] == "cpu"
    assert found["results"] and found["batches"] == [1]
    assert "Kept" in result.stderr


def test_quiet(model: Path, invoke: Invoke) -> None:
    result = invoke("tune", "net.onnx", "--budget", "0.1", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


WRONG = {
    "no such file": (["gone.onnx"], "the file gone.onnx does not exist"),
    "not ONNX": (["net.py"], "ONNX Runtime does not open net.py: .*"),
    "a batch that is none": (
        ["net.onnx", "--batch", "one"],
        "invalid value for '--batch': 'one' is not of the form 1,8,32; see .*",
    ),
    "a batch of zero": (["net.onnx", "--batch", "0"], "invalid value for '--batch': '0' is not .*"),
    "another batch than the file's": (
        ["net.onnx", "--batch", "4"],
        "x is float32 1x3x6x6: its batch size is 1, not 4; convert with --dynamic-batch for .*",
    ),
    "an unknown provider": (["net.onnx", "--provider", "tpu"], "invalid value for '--provider'.*"),
    "no budget": (["net.onnx", "--budget", "0"], "invalid value for '--budget': .*"),
    "an unknown input": (
        ["net.onnx", "--input-shape", "y:1x3x6x6"],
        "there is no input for the shape y; the inputs are x is float32 1x3x6x6",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_gives_one_sentence(model: Path, folder: Path, invoke: Invoke, case: str) -> None:
    arguments, message = WRONG[case]
    before = sorted(path.name for path in folder.iterdir())
    result = invoke("tune", *arguments)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_without_a_gpu_there_is_advice(model: Path, invoke: Invoke) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    result = invoke("tune", "net.onnx", "--provider", "cuda")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: this ONNX Runtime has no CUDA.*'passfx\[gpu\]'\n", result.stderr)


def test_an_intolerance_of_every_error_is_a_failed_verification(
    model: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passfx.runtime.tune.relative_error", lambda found, expected: 0.5)
    result = invoke("tune", "net.onnx", "--rtol", "0")
    assert result.exit_code == 1
    assert "does not agree with the file on the CPU: relative error 5.0e-01" in result.stderr
