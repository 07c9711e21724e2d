"""`passfx doctor`: what is installed, what is missing."""

import importlib.metadata
import sys
from typing import Any

import onnx
import pytest

from tests.cli.net import Invoke


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
