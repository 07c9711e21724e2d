"""No command writes over what it reads, or two things into one file."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.net import SOURCE, Invoke

SAME = {
    "source": (("convert", SOURCE, "-o", "net.py"), "--output and net.py:build"),
    "hard link": (("convert", SOURCE, "-o", "hard.py"), "--output and net.py:build"),
    "module": (("convert", "net:build", "-o", "net.py"), "--output and net:build"),
    "weights": (
        ("convert", SOURCE, "--weights", "w.pt", "-o", "link.pt"),
        "--output and --weights",
    ),
    "calibration": (
        ("convert", SOURCE, "-o", "x.npz", "--calibration", "x.npz"),
        "--output and --calibration",
    ),
    "json": (("convert", SOURCE, "-o", "x", "--json", "./x"), "--json and --output"),
    "report": (("convert", SOURCE, "-o", "x", "--report", "out/../x"), "--report and --output"),
    "json and report": (("inspect", SOURCE, "--json", "x", "--report", "x"), "--report and --json"),
    "inspected": (("inspect", SOURCE, "--json", "net.py"), "--json and net.py:build"),
    "verified": (("verify", SOURCE, "made.onnx", "--json", "made.onnx"), "--json and MODEL.onnx"),
    "raced": (("bench", "a.onnx", "made.onnx", "--json", "made.onnx"), "--json and made.onnx"),
    "tuned": (("tune", "made.onnx", "--json", "made.passfx.json"), "--json and the sidecar"),
    "variant": (("tune", "made.onnx", "--json", "made.tuned.onnx"), "--json and the tuned file"),
}


@pytest.mark.parametrize("case", SAME)
def test_one_file_for_two_things(folder: Path, made: Path, invoke: Invoke, case: str) -> None:
    shutil.copy(made, folder / "made.onnx")
    for name in ("w.pt", "x.npz"):
        (folder / name).write_bytes(b"precious")
    (folder / "link.pt").symlink_to("w.pt")
    os.link("net.py", "hard.py")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments, message = SAME[case]
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message} are the same file, "), result.stderr
    assert result.stderr.count("\n") == 1
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("arguments", [
    ("convert", SOURCE, "-o", "pipe"), ("convert", SOURCE, "-o", "x", "--json", "pipe"),
    ("inspect", SOURCE, "--report", "pipe"), ("convert", SOURCE, "-o", "n" * 300),
    ("convert", "n" * 300 + ".pt2", "-o", "x"), ("convert", "n" * 300 + ".py:f", "-o", "x"),
    ("convert", SOURCE, "-o", "x", "--weights", "n" * 300), ("tune", "n" * 300),
    ("verify", SOURCE, "n" * 300), ("bench", "n" * 300 + ".onnx"), ("convert", "out", "-o", "x"),
    ("convert", "out/", "-o", "x"), ("convert", "", "-o", "x"), ("convert", "empty.pt2", "-o", "x"),
    ("verify", SOURCE, "empty.pt2"), ("tune", "empty.pt2"), ("tune", "out"),
    ("convert", "é:é", "-o", "x"),
    ("deploy", "made.onnx", "--triton", "t", "--name", "n" * 300),
    ("deploy", "made.onnx", "--triton", "net.py"),
])  # fmt: skip
def test_places_that_are_no_files(
    folder: Path, made: Path, invoke: Invoke, arguments: tuple[str, ...]
) -> None:
    shutil.copy(made, folder / "made.onnx")
    (folder / "empty.pt2").write_bytes(b"")
    os.mkfifo("pipe")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "bug" not in result.stderr
    assert (folder / "pipe").is_fifo()
    assert not list(folder.glob(".passfx-*"))


class Payload:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> object:
        return Path.touch, (Path("touched"),)


def test_a_program_that_could_run_code(folder: Path, invoke: Invoke) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(2),))
    program._example_inputs = ((Payload(), torch.ones(2)), {})
    torch.export.save(program, "net.pt2")
    result = invoke("convert", "net.pt2", "-o", "out/net.onnx")
    assert result.exit_code == 2
    assert "loading that could run any code; load it with --trust-pickle" in result.stderr
    assert not (folder / "touched").exists()
    invoke("convert", "net.pt2", "-o", "out/net.onnx", "--trust-pickle")
    assert (folder / "touched").exists()
