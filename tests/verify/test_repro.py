"""What is undone is saved as files that show the failure without passfx."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import passfx
from passfx.errors import SourceError
from passfx.graph.editor import Editor, Match
from passfx.pipeline import Plan, optimize_graph
from tests.helpers import captured
from tests.verify.nets import Folded
from tests.verify.wrong import Build, Replace, aten, fold, not_a_number, wrong_sign

# What torch 2.11 says of every program that it loads.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")


class Pointwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + 1


def saved(tmp_path: Path, item: Replace) -> Path:
    """The script of the only rewrite that a pass had undone."""
    model = Folded() if len(item.targets) > 1 else Pointwise()
    optimize_graph(captured(model, torch.randn(2, 4, 8, 8)), [item, item], save_repro=tmp_path)
    (script,) = tmp_path.glob("*.py")
    return script


def shown(script: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints."""
    runpy.run_path(str(script))
    return capsys.readouterr().out


def replaced(build: Build) -> Replace:
    return Replace((aten.relu,), build)


def test_the_script_shows_both_results_and_the_error(tmp_path: Path, capsys: Any) -> None:
    script = saved(tmp_path, fold(wrong_sign))
    assert {path.name for path in tmp_path.iterdir()} == {script.name, f"{script.stem}.pt2"}
    assert script.stem.startswith("replace-")
    text = script.read_text()
    assert "The pass replace rewrote batch_norm (replaced)" in text and "relative error" in text
    assert "import passfx" not in text and "from passfx" not in text
    assert len([line for line in text.splitlines() if line.strip()]) <= 10
    error = float(shown(script, capsys).rsplit("relative error:\n", 1)[1])
    assert error > 1e-3


def test_the_program_is_plain_torch(tmp_path: Path) -> None:
    script = saved(tmp_path, fold(wrong_sign))
    program = torch.export.load(script.with_suffix(".pt2"))
    (given,) = program.example_inputs[0]
    (old,), (new,) = program.module()(given)
    assert old.dtype == new.dtype == torch.float64 and old.shape == new.shape
    assert not torch.allclose(old, new)


def test_a_failure_on_some_values_only_is_shown(tmp_path: Path, capsys: Any) -> None:
    def build(editor: Editor, match: Match) -> Node:
        return editor.call(aten.clamp.default, match.at.args[0], 0.0, 7.0)

    script = saved(tmp_path, replaced(build))
    assert float(shown(script, capsys).rsplit("relative error:\n", 1)[1]) > 1e-3


def test_nan_is_shown(tmp_path: Path, capsys: Any) -> None:
    assert shown(saved(tmp_path, fold(not_a_number)), capsys).endswith("nan\n")


def test_another_shape_is_shown(tmp_path: Path, capsys: Any) -> None:
    def build(editor: Editor, match: Match) -> Node:
        return editor.call(aten.max_pool2d.default, match.at.args[0], [2, 2])

    assert shown(saved(tmp_path, replaced(build)), capsys).endswith("inf\n")


def test_new_operators_that_do_not_run_are_said_to(tmp_path: Path, capsys: Any) -> None:
    def build(editor: Editor, match: Match) -> Node:
        return editor.call(aten.reshape.default, match.at.args[0], [2, 4, 8, 8])

    script = saved(tmp_path, replaced(build))
    assert "the new operators do not run" in shown(script, capsys)


def test_nothing_is_saved_where_nothing_is_undone(tmp_path: Path) -> None:
    passfx.optimize(Folded(), (torch.randn(2, 4, 8, 8),), save_repro=tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(
        SourceError, match=f"^what is undone cannot be saved in {path}: it is no folder; "
    ):
        Plan(save_repro=path)
    with pytest.raises(SourceError, match="cannot be saved in"):
        Plan(save_repro=path / "below")
