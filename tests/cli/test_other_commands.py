"""`passfx` itself, and `inspect`, `verify`, `passes` and `doctor`."""

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result

import passfx
from passfx.cli import main
from passfx.export.passes import FILE_PASSES
from passfx.passes.base import explanation, summary

Invoke = Callable[..., Result]
SOURCE = "net.py:build"


# passfx


def test_help_names_every_command(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("convert", "inspect", "verify", "passes", "doctor"):
        (line,) = re.findall(rf"^  {command} +(.*)$", result.stdout, re.MULTILINE)
        assert line.endswith(".") and not line.endswith("...")  # nothing is cut off
    assert "Exit codes: 0 done; 1 the result failed verification; 2 bad" in result.stdout


def test_nothing_shows_the_help(invoke: Invoke) -> None:
    assert invoke().stdout == invoke("--help").stdout
    assert invoke().exit_code == 0


@pytest.mark.parametrize("name", sorted(main.commands))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_every_command(invoke: Invoke, name: str, flag: str) -> None:
    result = invoke(name, flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: passfx {name} [OPTIONS]")
    options = result.stdout.partition("Options:\n")[2]
    described = re.findall(r"^  (-.*(?:\n {10,}\S.*)*)", options, re.MULTILINE)
    assert described
    for option in described:
        assert re.search(r"(?:  |\n {10,})[A-Z\[].*[.\]]$", option, re.DOTALL), option


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"passfx {passfx.__version__}\n"


def test_unknown_command(invoke: Invoke) -> None:
    result = invoke("convrt")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: no such command 'convrt'.*; see passfx --help\n", result.stderr)


# inspect


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


# verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `net.py:build`, made once."""
    from tests.cli.conftest import NET

    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text(NET)
    passfx.convert(f"{folder / 'net.py'}:build", folder / "net.onnx")
    return folder / "net.onnx"


def test_verify_proves_a_file(folder: Path, invoke: Invoke, made: Path) -> None:
    result = invoke("verify", SOURCE, str(made))
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"Parity +relative error \d\.\de-\d+ under CPUExecution", result.stdout)
    assert f"File         {made}, " in result.stdout
    report = json.loads(invoke("verify", SOURCE, str(made), "--json", "-").stdout)
    assert report["parity"]["passed"] is True
    assert report["onnx"]["ops"]["Conv"] == 1
    assert report["opset"] == 20


def test_verify_fails_on_other_weights(folder: Path, invoke: Invoke, made: Path) -> None:
    result = invoke("verify", SOURCE, str(made), "--seed", "1", "--json", "out/report.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the result disagrees with the model: under CPUExec")
    assert not list((folder / "out").iterdir())


def test_verify_finds_one_changed_weight(folder: Path, invoke: Invoke, made: Path) -> None:
    model = onnx.load(made)
    (weight,) = (item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.reshape(-1)[5] += 1e-3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "changed.onnx")
    assert invoke("verify", SOURCE, "changed.onnx").exit_code == 1
    assert invoke("verify", SOURCE, "changed.onnx", "--rtol", "0.1").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--input-shape", "1x3x7x7"],
            r"has the inputs x \(float32 1x3x6x6\), but the model has x \(float32 1x3x7x7\); "
            "give the options that it was made with",
        ),
        (
            ["--arg", "width=5"],
            r"has the outputs output \(float32 1x4x6x6\), but the model has output "
            r"\(float32 1x5x6x6\); give the options that it was made with",
        ),
        (
            ["--dynamic-batch"],
            r"has the inputs .*, but the model has x \(float32 batchx3x6x6\); .*",
        ),
    ],
)
def test_verify_names_other_inputs_and_outputs(
    folder: Path, invoke: Invoke, made: Path, options: list[str], message: str
) -> None:
    result = invoke("verify", SOURCE, str(made), *options)
    assert result.exit_code == 2
    assert re.fullmatch(f"error: {re.escape(str(made))} {message}\n", result.stderr), result.stderr


def test_verify_takes_a_file_with_more_freedom(folder: Path, invoke: Invoke) -> None:
    passfx.convert(SOURCE, "free.onnx", dynamic_batch=True)
    assert invoke("verify", SOURCE, "free.onnx").exit_code == 0
    assert invoke("verify", SOURCE, "free.onnx", "--dynamic-batch").exit_code == 0


def test_verify_of_what_is_no_model(folder: Path, invoke: Invoke) -> None:
    for name, message in (
        ("gone.onnx", "the file gone.onnx does not exist"),
        ("out", "the file out does not exist"),
        ("net.py", "net.py is not an ONNX file"),
    ):
        result = invoke("verify", SOURCE, name)
        assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_verify_of_a_file_that_does_not_run(folder: Path, invoke: Invoke, made: Path) -> None:
    model = onnx.load(made)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, folder / "broken.onnx")
    result = invoke("verify", SOURCE, "broken.onnx")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: broken\.onnx does not run: .*NoSuchOperator.*\n", result.stderr)


# passes

KINDS: tuple[Any, ...] = (*passfx.PASSES, *FILE_PASSES)


def test_passes_are_listed_in_their_order(invoke: Invoke) -> None:
    result = invoke("passes")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines == [[kind.name, summary(kind)] for kind in KINDS]
    assert result.exit_code == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_pass_is_explained_as_it_is_documented(invoke: Invoke, kind: Any) -> None:
    result = invoke("passes", kind.name)
    assert result.stdout == f"{kind.name}\n\n{explanation(kind)}\n"


def test_unknown_pass(invoke: Invoke) -> None:
    result = invoke("passes", "fold")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no pass 'fold'; the passes are remove-unused")


# doctor


def doctor(invoke: Invoke) -> dict[str, str]:
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    return {name: rest.strip() for name, rest in rows}


def test_doctor_shows_versions_and_providers(invoke: Invoke) -> None:
    import onnxruntime

    rows = doctor(invoke)
    assert rows["torch"] == importlib.metadata.version("torch")
    assert rows["onnx"] == onnx.__version__
    assert rows["providers"] == ", ".join(onnxruntime.get_available_providers())


def test_doctor_says_how_to_get_what_is_missing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("timm", "onnxruntime", "onnxruntime-gpu"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", without)
    rows = doctor(invoke)
    assert rows["timm"].endswith("for timm:NAME sources: pip install 'passfx[zoo]'")
    assert "pip install 'passfx[cpu]', for NVIDIA GPUs 'passfx[gpu]'" in rows["onnxruntime"]


@pytest.mark.parametrize(
    ("versions", "providers", "row", "advice"),
    [
        (("1.22", "1.22"), ["CUDAExecutionProvider"], "onnxruntime-gpu", "uninstall both, install"),
        (
            (None, "1.22"),
            ["CPUExecutionProvider"],
            "providers",
            "the CUDA provider is missing: pip",
        ),
    ],
)
def test_doctor_finds_a_broken_runtime(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    versions: Any,
    providers: list[str],
    row: str,
    advice: str,
) -> None:
    own = importlib.metadata.version

    def version(name: str) -> str:
        found = dict(zip(("onnxruntime", "onnxruntime-gpu"), versions, strict=True))
        if found.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found.get(name) or own(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert advice in doctor(invoke)[row]


def test_doctor_when_onnxruntime_does_not_import(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime does not import: " in doctor(invoke)["providers"]
