"""A .pt2 file that would run code is refused, and runs none."""

import collections
import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, *, y: dict[str, torch.Tensor], k: int = 3) -> Any:
        flat = (x + y["a-b"]).reshape(-1)[: 2 * x.shape[0] + 1]
        return {"a (b)": self.linear(x) * x.shape[0] * k, "flat": flat}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, x, batch = tmp_path_factory.mktemp("saved") / "net.pt2", torch.randn(3, 4), Dim("batch")
    shapes = {"x": {0: batch}, "y": {"a-b": {0: batch}}, "k": None}
    kwargs = {"y": {"a-b": x}, "k": 4}
    torch.export.save(torch.export.export(Net(), (x,), kwargs, dynamic_shapes=shapes), path)
    return path


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


def _changed(saved: Path, path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive with its members changed, and others added."""
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(path, "w") as written:
        root = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            written.writestr(name, change(name, archive.read(name)))
        for name, data in more.items():
            written.writestr(f"{root}/{name}", data)
    return path


def _refused(path: Path, what: str) -> None:
    match = f"holds {what}.*, and loading that could run any code; load it with --trust-pickle"
    with pytest.raises(SourceError, match=match) as caught:
        load_source(SourceSpec(str(path)))
    assert "\n" not in str(caught.value)


def _pickled(item: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    return buffer.getvalue()


def test_a_plain_program_passes(saved: Path) -> None:
    assert load_source(SourceSpec(str(saved))).model.example_inputs


@pytest.mark.parametrize("raw", [False, True])
def test_a_pickle_in_the_example_inputs(saved: Path, tmp_path: Path, raw: bool) -> None:
    touched = tmp_path / "touched"
    item = (Payload(touched), {})
    data = pickle.dumps(item) if raw else _pickled(item)
    path = _changed(
        saved, tmp_path / "net.pt2", lambda name, old: data if name.endswith(".pt") else old
    )
    _refused(path, r"a pickle of more than plain tensors \(.*sample_inputs/model.pt\)")
    assert not touched.exists()
    # This is what the refusal is about.
    with contextlib.suppress(SourceError):
        load_source(SourceSpec(str(path), trust_pickle=True))
    assert touched.exists()


def test_pickled_weights(saved: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    def change(name: str, old: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            found = json.loads(old)
            found["config"]["linear.bias"] |= {"use_pickle": True, "path_name": "weight_9"}
            return json.dumps(found).encode()
        return old

    more = {"data/weights/weight_9": _pickled(Payload(touched))}
    _refused(_changed(saved, tmp_path / "net.pt2", change, **more), "a pickle of more than plain")
    assert not touched.exists()


@pytest.mark.parametrize(("name", "what"), {
    "data/weights/model.pt": "a pickle of more than plain tensors",
    "data/constants/MODEL.PT": "a pickle of more than plain tensors",
    "serialized_state_dict.json": "a pickle of more than plain tensors",
    "data/constants/custom_obj_0": "a pickled object",
    "data/constants/opaque_obj_0": "a pickled object",
    "data/aotinductor/model/x.so": "compiled code",
}.items())  # fmt: skip
def test_members_that_are_code(saved: Path, tmp_path: Path, name: str, what: str) -> None:
    touched = tmp_path / "touched"
    more = {name: pickle.dumps(Payload(touched))}
    _refused(_changed(saved, tmp_path / "net.pt2", lambda _, old: old, **more), what)
    assert not touched.exists()


def _walk(item: Any, change: Callable[[dict[str, Any]], None]) -> None:
    if isinstance(item, dict):
        change(item)
    for inner in item.values() if isinstance(item, dict) else item:
        if isinstance(inner, dict | list):
            _walk(inner, change)


CODE = "__import__('pathlib').Path('touched').touch()"
STRINGS = {
    "expr_str": ("expr_str", CODE, "the expression"),
    "expr_str by eval": ("expr_str", "eval('1')", "the expression"),
    "expr_str with text": ("expr_str", "S('f(1)')", "the expression"),
    "guards_code": ("guards_code", [CODE], "the expression"),
    "guards_code with text": ("guards_code", ["L['\") or f(\"'] == 1"], "the expression"),
    "target": ("target", "torch.os.system", "a call of torch.os.system"),
    "target of ops": ("target", "torch.ops.load_library", "a call of torch.ops.load_library"),
    "target that calls": ("target", "_operator.methodcaller", "a call of _operator.methodcaller"),
    "target with files": ("target", "torch.ops.aten.from_file.default", "a call of torch.ops"),
    "name": ("name", f"x={CODE}", "the name"),
    "forward_arg_names": ("forward_arg_names", [f"x={CODE}"], "the name"),
}


@pytest.mark.parametrize("case", STRINGS)
def test_strings_that_are_code(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    key, value, what = STRINGS[case]

    def change(name: str, old: bytes) -> bytes:
        if "/models/" not in name:
            return old
        found = json.loads(old)
        _walk(found, lambda item: item.update({key: value}) if key in item else None)
        return json.dumps(found).encode()

    _refused(_changed(saved, tmp_path / "net.pt2", change), what)
    assert not (tmp_path / "touched").exists()


def test_types_that_are_imported(tmp_path: Path) -> None:
    class Default(nn.Module):
        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return x["a"] + 1

    path = tmp_path / "net.pt2"
    x = collections.defaultdict(list, {"a": torch.ones(2)})
    torch.export.save(torch.export.export(Default(), (x,)), path)
    _refused(path, "(the name of a type to import|a pickle)")


def test_an_archive_that_unpacks_to_too_much(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("net/data/weights/weight_0", bytes(50_000_000))
    with pytest.raises(SourceError, match="its members claim to be 0.1 GB"):
        load_source(SourceSpec(str(path)))
