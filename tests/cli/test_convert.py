"""`passfx convert`: what it prints and writes, its exit codes, and every way to use it wrongly."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from passfx.passes.collapse import Collapse
from tests.cli.net import SOURCE, Invoke


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


# done


def test_convert_writes_a_file_and_says_what_it_did(folder: Path, invoke: Invoke) -> None:
    result = invoke("convert", SOURCE, "-o", "out/net.onnx")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    onnx.checker.check_model(onnx.load(folder / "out" / "net.onnx"), full_check=True)
    assert files(folder) == ["net.onnx"]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == [SOURCE]
    assert ["batch_norm", "1", "0"] in lines
    assert ["conv2d", "1", "1"] in lines
    assert ["operators", "6", "5"] in lines
    assert "Shortcuts    1 identity, 0 projection" in result.stdout
    assert re.search(
        r"Parity +relative error \d\.\de-\d+ under CPUExecutionProvider", result.stdout
    )
    assert re.search(r"File +out/net\.onnx, [\d.]+ kB, opset 20: .*1 Conv", result.stdout)


def test_json_on_stdout_is_alone_there(folder: Path, invoke: Invoke) -> None:
    result = invoke("convert", SOURCE, "-o", "out/net.onnx", "--json", "-", "--opset", "18")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["source"], report["opset"]) == (SOURCE, 18)
    assert report["onnx"]["path"] == "out/net.onnx"
    assert "Parity" in result.stderr


def test_json_file_and_quiet(folder: Path, invoke: Invoke) -> None:
    (folder / "out" / "report.json").write_text("old")
    result = invoke("convert", SOURCE, "-o", "out/net.onnx", "--json", "out/report.json", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads((folder / "out" / "report.json").read_text())["parity"]["passed"] is True
    assert files(folder) == ["net.onnx", "report.json"]
    modes = {path.stat().st_mode for path in (folder / "out").iterdir()}
    assert modes == {(folder / "net.py").stat().st_mode}


def test_quiet_json_on_stdout(folder: Path, invoke: Invoke) -> None:
    result = invoke("convert", SOURCE, "-o", "out/net.onnx", "--json", "-", "-q")
    assert json.loads(result.stdout)["parity"]["passed"] is True
    assert result.stderr == ""


def test_options_reach_the_file(folder: Path, invoke: Invoke) -> None:
    torch.manual_seed(5)
    result = invoke(
        *("convert", "net.py:needs", "-o", "out/net.onnx", "-q", "--json", "-", "--no-verify"),
        *("--arg", "width=7", "--input-shape", "2,3,8,9", "--dynamic", "x:0,2", "--dynamic-batch"),
        *("--input-names", "image", "--output-names", "map", "--only", "collapse", "--seed", "3"),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 3, "x_2", 9]}
    ]
    assert report["outputs"] == [
        {"name": "map", "dtype": "float32", "shape": ["batch", 7, "x_2", 9]}
    ]
    assert report["parity"] is None
    assert [item["name"] for item in report["passes"]] == ["collapse"]


def test_ranges_of_sizes_and_guards(folder: Path, invoke: Invoke) -> None:
    (folder / "short.py").write_text(
        "import torch\n\n"
        "class Short(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.relu(x) if x.shape[1] > 4 else x * 100\n\n"
        "build = Short\n\n"
        "def example_inputs():\n"
        "    return torch.randn(2, 8)\n"
    )
    command = ("convert", "short.py:build", "-o", "short.onnx")
    refused = invoke(*command, "--dynamic", "x:1")
    assert refused.exit_code == 2 and not (folder / "short.onnx").exists()
    assert re.search(
        r"axis 1 of x must be at least 5, .*short.py:5.*--allow-guards", refused.stderr
    )
    for options, origin in (
        (("--dynamic", "x:1", "--allow-guards"), "because the graph follows"),
        (("--dynamic", "x:0,1=5:"), "as declared with dynamic_shapes"),
    ):
        result = invoke(*command, *options)
        assert result.exit_code == 0, result.stderr
        assert f"Size         axis 1 of x must be at least 5, {origin}" in result.stdout
    for wrong in ("x:1=9:3", "x:1=a:3", "x:1=3"):
        assert invoke(*command, "--dynamic", wrong).exit_code == 2


def test_checkpoint_and_dtypes_of_inputs(folder: Path, invoke: Invoke) -> None:
    (folder / "words.py").write_text(
        "import torch\n\n"
        "class Words(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(2, 4)\n\n"
        "    def forward(self, ids, mask):\n"
        "        return self.table(ids) * mask[..., None]\n"
    )
    state = {"module.table.weight": torch.randn(2, 4)}
    average = {"state_dict": {"table.weight": torch.ones(2, 4)}}
    options = argparse.Namespace(lr=0.1)
    torch.save({"model": state, "ema": average, "args": options}, folder / "w.ckpt")
    command = ("convert", "words.py:Words", "-o", "out/net.onnx", "--weights", "w.ckpt",
               "--input-shape", "ids:2x5:int64", "--input-shape", "mask:2x5:bool")  # fmt: skip
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert (
        "Note         weights from w.ckpt: 'model' without the prefix 'module.'; 'ema.state_dict' "
        "would fit too (--weights-key)\n"
        "Note         integers of ids are drawn from 0 and 1; example_inputs() may give others\n"
    ) in result.stdout
    result = invoke(*command, "--weights-key", "ema.state_dict", "--json", "-", "-q")
    report = json.loads(result.stdout)
    assert [item["dtype"] for item in report["inputs"]] == ["int64", "bool"]
    assert report["notes"][0] == "weights from w.ckpt: 'ema.state_dict'"
    torch.save({"table.weights": torch.ones(2, 4), "table.weight": state["module.table.weight"]},
               folder / "w.ckpt")  # fmt: skip
    assert invoke(*command).exit_code == 2
    result = invoke(*command, "--no-strict")
    assert result.exit_code == 0, result.stderr
    assert "Note         w.ckpt has table.weights besides: left out\n" in result.stdout


def test_seed_decides_the_weights(folder: Path, invoke: Invoke) -> None:
    def weights(seed: str) -> bytes:
        invoke("convert", SOURCE, "-o", "out/net.onnx", "-q", "--no-verify", "--seed", seed)
        model = onnx.load(folder / "out" / "net.onnx")
        return b"".join(item.raw_data for item in model.graph.initializer)

    assert weights("1") != weights("2")


@pytest.mark.parametrize(
    ("source", "shape"),
    [("timm:test_resnet", "1x3x32x32"), ("torchvision:squeezenet1_1", "1x3x32x32")],
)
def test_zoo_sources(folder: Path, invoke: Invoke, source: str, shape: str) -> None:
    result = invoke("convert", source, "-o", "out/net.onnx", "-q", "--input-shape", shape)
    assert (result.exit_code, result.output) == (0, "")
    assert files(folder) == ["net.onnx"]


def test_names_that_rich_would_read_as_markup(folder: Path, invoke: Invoke) -> None:
    (folder / "net.py").rename(folder / "net[bold].py")
    (folder / "out" / "[").mkdir()
    result = invoke("convert", "net[bold].py:build", "-o", "out/[/b].onnx")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("net[bold].py:build\n")
    assert "File         out/[/b].onnx, " in result.stdout


def test_result_agrees_with_the_model(folder: Path, invoke: Invoke) -> None:
    import onnxruntime

    from passfx.source.load import load_source
    from passfx.source.spec import SourceSpec

    invoke("convert", SOURCE, "-o", "out/net.onnx", "-q")
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        expected = load_source(SourceSpec(SOURCE)).model.eval()(x)  # type: ignore[union-attr, operator]
    (result,) = onnxruntime.InferenceSession("out/net.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_installed_command(folder: Path) -> None:
    """Once in a process of its own: nothing but what passfx says reaches the terminal."""
    command = [sys.executable, "-c", "from passfx.cli import main; main()", "convert", SOURCE]
    quiet = subprocess.run([*command, "-o", "out/net.onnx", "-q"], capture_output=True, text=True)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert files(folder) == ["net.onnx"]


# verification fails: exit code 1


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """collapse leaves the norm out, and its certificates are not asked."""

    def rewrite(self: Collapse, editor: Any, match: Any) -> Any:
        return editor.call(match.nodes[0].target, *match.nodes[0].args)

    def run_passes(*args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "verify": False})

    import passfx.pipeline

    original = passfx.pipeline.run_passes
    monkeypatch.setattr(Collapse, "rewrite", rewrite)
    monkeypatch.setattr("passfx.pipeline.run_passes", run_passes)


@pytest.mark.parametrize("content", [None, b"an older file"])
def test_failed_verification(
    folder: Path, invoke: Invoke, wrong_pass: None, content: bytes | None
) -> None:
    path = folder / "out" / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    result = invoke("convert", SOURCE, "-o", "out/net.onnx", "--json", "out/report.json")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"error: the result disagrees with the model: under CPUExecutionProvider the relative "
        r"error of output is \d.\d\de[+-]\d\d, tolerated is .*\n",
        result.stderr,
    )
    assert result.stdout == ""
    assert files(folder) == ([] if content is None else ["net.onnx"])
    assert content is None or path.read_bytes() == content


def test_success_replaces_the_older_file(folder: Path, invoke: Invoke) -> None:
    path = folder / "out" / "net.onnx"
    path.write_bytes(b"an older file")
    assert invoke("convert", SOURCE, "-o", "out/net.onnx", "-q").exit_code == 0
    onnx.checker.check_model(onnx.load(path))
    assert files(folder) == ["net.onnx"]


# bad usage and bad input: exit code 2

WRONG = {
    "nothing": ([], r"missing argument 'SOURCE'; see passfx convert --help"),
    "no output": ([SOURCE], r"missing option '-o' / '--output'; see passfx convert --help"),
    "no such option": (
        [SOURCE, "-o", "out/net.onnx", "--opsett", "20"],
        r"no such option '?--opsett'?.*--opset.*; see passfx convert --help",
    ),
    "opset that is no number": (
        [SOURCE, "-o", "out/net.onnx", "--opset", "new"],
        r"invalid value for '--opset': 'new' is not a valid integer; see passfx convert --help",
    ),
    "precision that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--precision", "int8"],
        r"invalid value for '--precision': 'int8' is not one of 'fp32', 'fp16', 'bf16'; see .*",
    ),
    "unknown source": (
        ["resnet18", "-o", "out/net.onnx"],
        r"'resnet18' is not a source; did you mean timm:resnet18 or torchvision:resnet18\?",
    ),
    "no such file": (["gone.py:build", "-o", "out/net.onnx"], "the file gone.py does not exist"),
    "no such factory": (
        ["net.py:biuld", "-o", "out/net.onnx"],
        r"net\.py has no factory 'biuld'; it has build",
    ),
    "no such timm model": (
        ["timm:resnt18", "-o", "out/net.onnx"],
        r"timm has no model 'resnt18'; did you mean resnet18, .*\?",
    ),
    "factory that raises": (
        ["net.py:invents", "-o", "out/net.onnx"],
        r"net\.py:invents raised ValueError: in_channels .* groups \(.*/net\.py:30\)",
    ),
    "missing factory argument": (
        ["net.py:needs", "-o", "out/net.onnx"],
        r"net\.py:needs: missing a required argument: 'width'; it takes width, "
        r"each given as --arg key=value",
    ),
    "argument without a value": (
        ["net.py:needs", "-o", "out/net.onnx", "--arg", "width"],
        "the argument 'width' is not of the form key=value",
    ),
    "input shape that the model does not take": (
        [SOURCE, "-o", "out/net.onnx", "--input-shape", "1x5x6x6"],
        r"Net itself fails on inputs of float32 1x5x6x6 at .*/net\.py:14 \(.*\): RuntimeError: .*",
    ),
    "input shape that is none": (
        [SOURCE, "-o", "out/net.onnx", "--input-shape", "1x5x"],
        r"the input shape '1x5x' is not of the form \[NAME:\]1x3x224x224\[:int64\]",
    ),
    "input that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--input-shape", "z:1x3x6x6", "--dynamic-batch"],
        r"net\.py:build does not take these inputs: missing a required argument: 'x'; "
        r"it takes \(x\)",
    ),
    "absent weights": (
        [SOURCE, "-o", "out/net.onnx", "--weights", "gone.pt"],
        r"the weights file gone\.pt does not exist",
    ),
    "weights that do not fit": (
        [SOURCE, "-o", "out/net.onnx", "--weights", "other.pt"],
        r"other\.pt does not fit Net: missing: norm\.weight \(nearest: extra\), .* and 1 more; "
        r"unexpected: extra \(nearest: norm\.bias, norm\.running_var, norm\.running_mean\); "
        r"of another shape or dtype: conv\.weight \(9, 3, 3, 3\) instead of \(4, 3, 3, 3\); "
        r"build the model with the arguments that it was trained with \(--arg\)",
    ),
    "key of no weights": (
        [SOURCE, "-o", "out/net.onnx", "--weights-key", "ema"],
        r"--weights-key \(weights_key\) is for a file that --weights names",
    ),
    "file without a factory": (
        ["net.py", "-o", "out/net.onnx"],
        r"net\.py alone is not a source: name a factory in it, net\.py:Net, net\.py:Branches, .*",
    ),
    "ONNX file as a source": (
        ["other.onnx", "-o", "out/net.onnx"],
        r"other\.onnx is an ONNX file, which is not a source: give the model that it was made .*",
    ),
    "input of another dtype": (
        [SOURCE, "-o", "out/net.onnx", "--input-shape", "x:1x3x6x6:int64"],
        r"Net itself fails on inputs of int64 1x3x6x6 at .*; it takes x in float32, not int64: .*",
    ),
    "dtype that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--input-shape", "x:1x3x6x6:int46"],
        r"the input shape 'x:1x3x6x6:int46' is not of the form .*; did you mean int64\?",
    ),
    "output folder that does not exist": (
        [SOURCE, "-o", "gone/net.onnx"],
        "the folder gone does not exist; create it first",
    ),
    "output that is a folder": (
        [SOURCE, "-o", "out"],
        "out is a folder; give the name of the file to write",
    ),
    "report in a folder that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--json", "gone/report.json"],
        "the folder gone does not exist; create it first",
    ),
    "report that is a folder": (
        [SOURCE, "-o", "out/net.onnx", "--json", "out"],
        "out is a folder; give the name of the file to write",
    ),
    "output with the name of another format": (
        [SOURCE, "-o", "out/net.PT"],
        "out/net.PT would be an ONNX file with the name of another format; call it net.onnx",
    ),
    "opset out of range": (
        [SOURCE, "-o", "out/net.onnx", "--opset", "7"],
        "opset 7 is not supported: 18 to 25 are",
    ),
    "bf16 on the CPU": (
        [SOURCE, "-o", "out/net.onnx", "--precision", "bf16"],
        "ONNX Runtime's CPU provider has no bfloat16 kernels; use --precision fp16, or "
        "--target cuda",
    ),
    "bf16 convolutions": (
        [SOURCE, "-o", "out/net.onnx", "--precision", "bf16", "--target", "cuda"],
        r"ONNX Runtime's CUDA provider has no bfloat16 kernel for Conv \(1 in this model\); "
        "use --precision fp16",
    ),
    "epilogues in half precision": (
        [SOURCE, "-o", "out/net.onnx", "--precision", "fp16", "--epilogues"],
        "FusedConv has kernels for fp32 only: --epilogues is for --precision fp32",
    ),
    "calibration that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--precision", "fp16", "--calibration", "gone.npz"],
        "gone.npz is not an .npz file of arrays: .*No such file.*",
    ),
    "unknown pass": (
        [SOURCE, "-o", "out/net.onnx", "--skip", "fold-norm"],
        "there is no pass 'fold-norm'; the passes are remove-unused, .*",
    ),
    "dynamic input that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--dynamic", "z:0"],
        "there is no input 'z'; the inputs are x",
    ),
    "dynamic axis that does not exist": (
        [SOURCE, "-o", "out/net.onnx", "--dynamic", "x:0,4"],
        "input 'x' has 4 axes, so none is number 4",
    ),
    "dynamic axes that are none": (
        [SOURCE, "-o", "out/net.onnx", "--dynamic", "0,2"],
        "the dynamic axes '0,2' are not of the form NAME:0,2,3 or NAME:0,2=8:100",
    ),
    "too many names": (
        [SOURCE, "-o", "out/net.onnx", "--input-names", "a,b"],
        r"the model has 1 input\(s\) \(x\), not 2",
    ),
    "flow that depends on data": (
        ["net.py:Branches", "-o", "out/net.onnx"],
        r"Branches cannot be captured at .*/net\.py:19 \(if x\.sum\(\) > 0:\): its flow depends on "
        r"the value of a tensor; use torch\.where or torch\.cond there",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_gives_one_sentence_and_no_file(folder: Path, invoke: Invoke, case: str) -> None:
    torch.save({"conv.weight": torch.zeros(9, 3, 3, 3), "extra": torch.zeros(1)}, "other.pt")
    before = sorted(path.name for path in folder.iterdir())
    arguments, message = WRONG[case]
    result = invoke("convert", *arguments)
    assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr
    assert result.exit_code == 2
    assert result.stdout == ""
    assert files(folder) == []
    assert [
        name for name in sorted(path.name for path in folder.iterdir()) if name != "__pycache__"
    ] == before


def test_without_onnxruntime(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = invoke("convert", SOURCE, "-o", "out/net.onnx")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: ONNX Runtime is not installed; install it with pip install 'passfx[cpu]' or, for "
        "NVIDIA GPUs, 'passfx[gpu]', or pass --no-verify (verify=False)\n"
    )
    assert files(folder) == []
    assert invoke("convert", SOURCE, "-o", "out/net.onnx", "--no-verify").exit_code == 0


def test_a_bug_says_that_it_is_one(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise IndexError("off by one\nand much more")

    monkeypatch.setattr("passfx.jobs.optimize.optimize_graph", fail)
    result = invoke("convert", SOURCE, "-o", "out/net.onnx")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: IndexError: off by one. This is a bug in passfx; --debug shows the traceback\n",
    )


def test_debug_shows_the_traceback(folder: Path, invoke: Invoke) -> None:
    result = invoke("convert", "net.py:invents", "-o", "out/net.onnx", "--debug")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "return nn.Conv2d(3, 5, 3, groups=2)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: net.py:invents raised ValueError")


def test_interruption_leaves_nothing(
    folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("passfx.runtime.reference.parity", interrupt)
    result = invoke("convert", SOURCE, "-o", "out/net.onnx")
    assert result.exit_code == 130
    assert files(folder) == []
