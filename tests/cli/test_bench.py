"""`passfx bench`: who takes part, what is printed and written, and wrong use."""

import json
import re
import shutil
from pathlib import Path

import pytest

from passfx.runtime.roofline import Peaks
from tests.cli.net import SOURCE, Invoke

QUICK = ("--seconds", "0.2", "--tune-budget", "0.2", "--no-compile")


def test_everyone_takes_part(folder: Path, invoke: Invoke) -> None:
    result = invoke("bench", SOURCE, *QUICK, "--batch", "1,3", "--json", "figures.json",
                    "--report", "page.html")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("figures.json").read_text())
    names = ["PyTorch", "torch.onnx.export", "passfx", "passfx tuned"]
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [
        (name, batch) for batch in (1, 3) for name in names
    ]
    for row in found["rows"]:
        assert row["failed"] is None
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["throughput"] == pytest.approx(1000 * row["batch"] / row["p50"])
        assert row["rel_error"] <= 1e-5 and 0 < row["roofline"] <= 1
    baseline = [row for row in found["rows"] if row["name"] == found["baseline"]]
    assert [row["speedup"] for row in baseline] == [1.0, 1.0]
    for word in (*names, "p50 ms", "of roofline", "samples/s", "the model in float64"):
        assert word in result.stdout
    page = Path("page.html").read_text()
    assert page.count("<rect") == 8 and "Batch 3" in page and "https://" not in page


def test_torch_compile_takes_part(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda model, mode: model)
    result = invoke("bench", SOURCE, "--seconds", "0.1", "--tune-budget", "0", "--json", "-")
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert list(rows) == ["PyTorch", "torch.compile (default)", "torch.onnx.export", "passfx"]
    assert rows["torch.compile (default)"]["rel_error"] <= 1e-6


def test_who_fails_is_a_row(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, mode: str) -> None:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr("torch.compile", fail)
    result = invoke("bench", SOURCE, "--seconds", "0.1", "--tune-budget", "0", "--report", "a.html")
    assert result.exit_code == 0
    assert "RuntimeError: no compiler" in result.stdout
    assert "RuntimeError: no compiler" in Path("a.html").read_text()


def test_files_race_each_other(folder: Path, invoke: Invoke, made: Path) -> None:
    shutil.copy(made, "a.onnx")
    half = ("-o", "b.onnx", "-q", "--precision", "fp16")
    assert invoke("convert", SOURCE, *half).exit_code == 0
    assert invoke("tune", "a.onnx", "--budget", "0.1", "-q").exit_code == 0
    result = invoke("bench", "a.onnx", "b.onnx", "--seconds", "0.2", "--json", "-")
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows] == ["a.onnx", "a.onnx tuned", "b.onnx"]
    assert rows[0]["rel_error"] == 0 and 0 < rows[2]["rel_error"] <= 1e-2
    assert "errors from a.onnx on the CPU" in result.stderr


def test_a_file_races_its_model(folder: Path, invoke: Invoke, made: Path) -> None:
    shutil.copy(made, "a.onnx")
    result = invoke("bench", SOURCE, "a.onnx", *QUICK, "--json", "-")
    rows = json.loads(result.stdout)["rows"]
    assert rows[-1]["name"] == "a.onnx" and rows[-1]["rel_error"] <= 1e-5


def test_a_missing_file_is_said_before_the_race(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("it races")

    monkeypatch.setattr("passfx.jobs.bench.load_source", fail)
    monkeypatch.setattr("passfx.jobs.bench.measure_peaks", fail)
    result = invoke("bench", SOURCE, "gone.onnx", *QUICK)
    assert (result.exit_code, result.stderr) == (2, "error: the file gone.onnx does not exist\n")


def test_a_row_that_exceeds_the_peaks_raises_them(
    folder: Path, invoke: Invoke, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Peaks({"float32": 1e3}, 1e3)
    monkeypatch.setattr("passfx.jobs.bench.measure_peaks", lambda *_: slow)
    shutil.copy(made, "a.onnx")
    shutil.copy(made, "b.onnx")
    result = invoke("bench", "a.onnx", "b.onnx", "--seconds", "0.2", "--json", "-")
    found = json.loads(result.stdout)
    assert max(row["roofline"] for row in found["rows"]) == 1.0
    raised = found["peaks"]["bandwidth"] / 1e3
    assert raised > 1 and found["peaks"]["float32"] == pytest.approx(1e3 * raised)


WRONG = {
    "nothing": ([], "missing argument '.*SOURCE.*"),
    "two sources": ([SOURCE, "net.py:needs"], "one SOURCE can be raced at a time, not .*"),
    "no such file": (["gone.onnx"], "the file gone.onnx does not exist"),
    "no such source": (["gone.py:build"], "the file gone.py does not exist"),
    "weights for files": (
        ["a.onnx", "--weights", "w.pt"],
        "--weights and --arg are for a SOURCE, not for ONNX files",
    ),
    "a folder that does not exist": (
        [SOURCE, "--report", "gone/a.html"],
        "the folder gone does not exist; create it first",
    ),
    "bf16": (
        [SOURCE, "--precision", "bf16", "--no-compile"],
        "ONNX Runtime's CPU provider has no bfloat16 kernels; .*",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_gives_one_sentence(folder: Path, invoke: Invoke, case: str) -> None:
    arguments, message = WRONG[case]
    result = invoke("bench", *arguments)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr


def test_a_gpu_that_is_not_there(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = invoke("bench", SOURCE, "--provider", "cuda")
    assert (result.exit_code, result.stderr) == (
        2, "error: PyTorch sees no CUDA device; --provider cpu measures this machine\n",
    )  # fmt: skip
