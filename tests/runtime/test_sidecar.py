"""The sidecar: what is written comes back, and never for another file."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import passfx
from passfx.errors import SourceError
from passfx.runtime import Options, load
from passfx.runtime.sidecar import Sidecar, read_sidecar, sidecar_path, sidecar_text


def model_at(path: Path, weight: float = 1.0) -> Path:
    layer = nn.Linear(4, 300)
    nn.init.constant_(layer.weight, weight)
    nn.init.zeros_(layer.bias)
    passfx.convert(layer, path, (torch.randn(2, 4),))
    return path


def tuned(model: Path, options: Options, variant: Path | None = None) -> Sidecar:
    sidecar = Sidecar(variant or model, options, (2,), "a machine", 1.25, ({"batch": 2},))
    sidecar_path(model).write_text(sidecar_text(model, sidecar, {"torch": "2"}))
    return sidecar


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    written = tuned(model, Options(threads=1, spinning=False))
    assert sidecar_path(model) == tmp_path / "net.passfx.json"
    assert read_sidecar(model) == written
    keys = json.loads(sidecar_path(model).read_text()).keys()
    assert keys >= {"passfx", "model", "tuned", "provider", "batches", "options"}


def test_without_a_sidecar_there_is_none(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    assert read_sidecar(model) is None
    with pytest.warns(
        UserWarning, match=r"was not tuned, .*; `passfx tune .*net.onnx` finds be"
    ) as told:
        session = load(model)
    assert told[0].filename == __file__
    assert session.options == Options()
    assert session.run(torch.ones(2, 4))[0].shape == (2, 300)
    with pytest.raises(SourceError, match="gone.onnx does not exist"):
        load(tmp_path / "gone.onnx")


def test_load_opens_the_tuned_file_with_its_options(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    variant = model_at(tmp_path / "net.tuned.onnx", weight=3.0)
    tuned(model, Options(threads=1), variant)
    session = load(model)
    assert session.options == Options(threads=1)
    (result,) = session.run([torch.ones(2, 4)])
    assert torch.equal(result, torch.full((2, 300), 12.0))


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    tuned(model, Options())
    model_at(model, weight=2.0)
    with pytest.raises(SourceError, match=r"net.onnx is not what it was when .*tune again"):
        load(model)


def test_other_weights_beside_the_file_are_refused(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    onnx.save(
        onnx.load(model),
        model,
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    tuned(model, Options())
    assert read_sidecar(model) is not None
    data = tmp_path / "net.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(SourceError, match="is not what it was"):
        read_sidecar(model)


def test_a_missing_variant_is_refused(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    variant = model_at(tmp_path / "net.tuned.onnx")
    tuned(model, Options(), variant)
    variant.unlink()
    with pytest.raises(SourceError, match=r"net.tuned.onnx, which does not exist; tune again"):
        read_sidecar(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tuned": 3}', '{"tuned": {"file": null}}'])
def test_a_broken_sidecar_is_refused(tmp_path: Path, text: str) -> None:
    model = model_at(tmp_path / "net.onnx")
    sidecar_path(model).write_text(text)
    with pytest.raises(SourceError, match="is not a file that `passfx tune` wrote"):
        read_sidecar(model)


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    tuned(model, Options())
    path = sidecar_path(model)
    found = json.loads(path.read_text())
    found["options"]["speed"] = 11
    path.write_text(json.dumps(found))
    with pytest.raises(SourceError, match="there is no option 'speed'"):
        read_sidecar(model)


@pytest.mark.parametrize(("key", "value"), [
    ("speedup", float("nan")), ("speedup", -1), ("speedup", "2"), ("speedup", True),
    ("batches", [0]), ("batches", ["1"]), ("batches", 3), ("device", None), ("results", [3]),
    ("options", {"threads": -1}), ("options", {"threads": [[1]]}), ("options", []),
    ("tuned", {"file": ["net.onnx"]}), ("tuned", {"file": "n" * 300}), ("model", [[[]]]),
])  # fmt: skip
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: object) -> None:
    model = model_at(tmp_path / "net.onnx")
    tuned(model, Options())
    path = sidecar_path(model)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SourceError, match="tune again|is not a file that") as caught:
        read_sidecar(model)
    assert "\n" not in str(caught.value)


def test_a_nested_sidecar_is_refused(tmp_path: Path) -> None:
    model = model_at(tmp_path / "net.onnx")
    sidecar_path(model).write_text("[" * 100_000)
    with pytest.raises(SourceError, match="is not a file that `passfx tune` wrote"):
        read_sidecar(model)
