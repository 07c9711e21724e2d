"""`passfx inspect`: shortcuts, rewrites and refusals; nothing is written."""

import json
import re
from pathlib import Path

from tests.cli.net import SOURCE, Invoke


def test_inspect_shows_shortcuts_and_passes(folder: Path, invoke: Invoke) -> None:
    result = invoke("inspect", SOURCE)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "Input        x: float32 1 × 3 × 6 × 6" in lines
    assert "Output       output: float32 1 × 4 × 6 × 6" in lines
    assert "identity at add, add from relu" in lines
    assert "  body  sigmoid" in lines
    assert "collapse: 1 rewrite, 0 refusals" in lines
    assert any(re.fullmatch(r"  norm \(batch_norm\): .* \(error \de-\d+\)", item) for item in lines)
    assert not list(folder.rglob("*.onnx"))


def test_inspect_names_dynamic_sizes(folder: Path, invoke: Invoke) -> None:
    result = invoke("inspect", SOURCE, "--dynamic-batch", "--dynamic", "x:3")
    assert "Input        x: float32 batch × 3 × 6 × x_3" in result.stdout
    assert "Output       output: float32 batch × 4 × 6 × x_3" in result.stdout


def test_inspect_as_json(folder: Path, invoke: Invoke) -> None:
    result = invoke("inspect", SOURCE, "--json", "-")
    report = json.loads(result.stdout)
    assert [item["kind"] for item in report["shortcuts"]] == ["identity"]
    assert report["onnx"] is None
    assert "collapse: 1 rewrite" in result.stderr
    quiet = invoke("inspect", SOURCE, "--json", "out/report.json", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert json.loads((folder / "out" / "report.json").read_text())["source"] == SOURCE


def test_inspect_shows_refusals(folder: Path, invoke: Invoke) -> None:
    (folder / "shared.py").write_text(
        "import torch\n"
        "class Shared(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 3, 1)\n"
        "        self.norm = torch.nn.BatchNorm2d(3)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x)\n"
        "        return self.norm(y) * torch.sigmoid(y)\n"
    )
    result = invoke("inspect", "shared.py:Shared", "--input-shape", "1x3x4x4")
    assert "collapse: 0 rewrites, 1 refusal" in result.stdout
    assert "  norm (batch_norm): refused, conv2d is also read by sigmoid" in result.stdout


def test_inspect_of_a_wrong_source(folder: Path, invoke: Invoke) -> None:
    result = invoke("inspect", "net.py:biuld")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: net.py has no factory 'biuld'; it has build\n"


def test_a_folder_for_what_is_undone_is_made(folder: Path, invoke: Invoke) -> None:
    assert invoke("inspect", SOURCE, "-q", "--save-repro", "out/below/undone").exit_code == 0
    assert list((folder / "out" / "below" / "undone").iterdir()) == []


def test_what_is_undone_is_not_saved_in_a_file(folder: Path, invoke: Invoke) -> None:
    result = invoke("inspect", SOURCE, "--save-repro", "net.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: what is undone cannot be saved in net.py: it is no folder; give a folder\n"
    )
