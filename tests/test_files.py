"""Where files may be written, and what a killed run leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from passfx import files
from passfx.errors import ExportError
from passfx.files import check_apart, check_writable, data_name, staging, write_text


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ExportError, match="is a device or a pipe; give the name of a file"):
            write_text(path, "x")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "report.json", tmp_path / "link.json"
    link.symlink_to(target)
    if exists:
        target.write_text("old")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "far") == ["report.json"]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "lost").symlink_to(tmp_path / "gone" / "x")
    for name, message in {
        "n" * 300: "cannot be written: File name too long",
        "a\0b": "cannot be written: embedded null byte",
        "circle": "cannot be written: Symlink loop",
        "lost": "gone does not exist; create it first",
        "": "is a folder",
    }.items():
        with pytest.raises(ExportError, match=message) as caught:
            check_writable(tmp_path / name)
        assert len(str(caught.value)) < 400


def test_one_file_by_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model.onnx"
    model.write_text("x")
    (tmp_path / "link").symlink_to(model)
    os.link(model, tmp_path / "hard")
    for name in ("model.onnx", "./model.onnx", f"../{tmp_path.name}/model.onnx", "link", "hard"):
        with pytest.raises(ExportError, match="the output and the source are the same file"):
            check_apart({"the output": Path(name)}, {"the source": model})
        with pytest.raises(ExportError, match="--json and --output are the same file"):
            check_apart({"--output": model, "--json": Path(name)}, {})
    check_apart({"--output": model, "--json": None}, {"the source": tmp_path / "other"})


KILLED = """
import os, signal, sys
from pathlib import Path
from passfx.files import replacing
with replacing(Path(sys.argv[1])) as written:
    written.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    path, own = tmp_path / "x", tmp_path / ".passfx-settings"
    own.mkdir()  # not one of ours
    path.write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    (left,) = tmp_path.glob(".passfx-*-*")
    with staging(tmp_path) as living:
        assert not left.exists()
        write_text(path, "new")
        assert living.exists()
    assert sorted(os.listdir(tmp_path)) == [own.name, "x"]


def test_without_locks_only_what_is_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    fresh, old = tmp_path / ".passfx-1-aaaaaaaa", tmp_path / ".passfx-1-bbbbbbbb"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    write_text(tmp_path / "x", "new")
    assert sorted(os.listdir(tmp_path)) == [fresh.name, "x"]


def test_a_move_that_was_killed_is_finished_by_the_next_run(tmp_path: Path) -> None:
    old, new = (data_name("model.onnx", digit * 12) for digit in "01")
    precious = tmp_path / "precious"
    for name in (old, new, "precious"):
        (tmp_path / name).write_text("data")
    left = tmp_path / ".passfx-1-aaaaaaaa"
    for model, kept in ((f"reads {old}", old), (f"reads {new}", new)):
        (tmp_path / "model.onnx").write_text(model)
        (tmp_path / old).write_text("data")
        (tmp_path / new).write_text("data")
        left.mkdir()
        # A journal that others planted does not make us delete their choice.
        (left / ".journal").write_text("\0".join(["model.onnx", old, new, "precious", "../x"]))
        write_text(tmp_path / "x", "new")
        assert sorted(os.listdir(tmp_path)) == sorted(["model.onnx", kept, "precious", "x"])
    assert precious.exists()
