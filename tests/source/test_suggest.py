"""Texts that are no source: what was meant, and what to do."""

import pickle
import re
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


def error_of(text: str) -> str:
    with pytest.raises(SourceError) as caught:
        load_source(SourceSpec(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("ResNet50", "timm:resnet50 or torchvision:resnet50"),
        ("resnet50.a1_in1k", "timm:resnet50 or torchvision:resnet50"),
        ("timm/resnet50.a1_in1k", "timm:resnet50 or torchvision:resnet50"),
        ("hf-hub:timm/resnet50.a1_in1k", "timm:resnet50 or torchvision:resnet50"),
        ("fcn_resnet50", "torchvision:fcn_resnet50"),
        ("tv:resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("torch:resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("timm:fcn_resnet50", "torchvision:fcn_resnet50"),
        ("torchvision:resnet26d", "timm:resnet26d"),
        ("timm:ResNet50", "timm:resnet50, torchvision:resnet50"),
    ],
)
def test_names_of_zoos(text: str, meant: str) -> None:
    assert error_of(text).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("text", ["resnet5", "timm:resnet5", "torchvision:resnet5"])
def test_names_like_those_of_zoos(text: str) -> None:
    assert re.search(r"; did you mean .*resnet50", error_of(text))


def test_beginning_of_a_name() -> None:
    assert "did you mean swin_" in error_of("timm:swin")


def test_without_a_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert error_of("resnet50").endswith("did you mean torchvision:resnet50?")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "'resnet50' is not a source: give file.py:factory" in error_of("resnet50")


def test_file_without_a_factory(net: Path) -> None:
    names = ("Net", "build", "build_half", "needs", "invents", "leaves", "number", "ready")
    known = ", ".join(f"{net}:{name}" for name in names)
    for text in (str(net), f"{net}:"):
        assert error_of(text) == f"{net} alone is not a source: name a factory in it, {known}"
    empty = net.with_name("empty.py")
    empty.write_text("from net import Net\nwidth = 3\n\nclass Other:\n    pass\n")
    assert error_of(str(empty)) == (
        f"{empty} has no factory: define a function that returns the model, and give "
        f"{empty}:function"
    )
    empty.write_text("raise ValueError('no')")
    assert re.search(r"importing .*empty\.py raised ValueError: no \(.*:1\)$", error_of(str(empty)))
    gone = net.with_name("gone.py")
    assert error_of(str(gone)) == f"the file {gone} does not exist"


def test_module_without_a_factory(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    assert error_of("net").startswith("net alone is not a source: name a factory in it, net:Net, ")
    (net.parent / "sub").mkdir()
    (net.parent / "sub" / "net.py").write_text(net.read_text())
    assert error_of("sub/net:build") == (
        "'sub/net' is no module to import; did you mean sub/net.py:build?"
    )


def test_folder(net: Path) -> None:
    assert error_of(str(net.parent)) == (
        f"{net.parent} is a folder: name a file in it, {net.parent}/net.py:factory; it holds net.py"
    )


def test_files_of_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    for name in ("w.pt", "w.pth", "w.ckpt", "w.bin", "w.safetensors", "w"):
        path = tmp_path / name
        assert "does not exist" in error_of(str(path)) or name == "w"
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(model.state_dict(), path)
        else:
            torch.save({"model": model.state_dict(), "epoch": 1}, path)
        assert error_of(str(path)) == (
            f"{path} holds weights and no model: give what builds it as SOURCE (file.py:factory, "
            f"timm:NAME, …), with --weights {path}"
        )
    path = tmp_path / "w.pt"
    torch.save({"model": model}, path)
    assert error_of(str(path)) == (
        f"{path} holds a whole pickled module (torch.nn.modules.container.Sequential) without its "
        f"code: give what builds it as SOURCE, file.py:factory, with --weights {path} "
        "--trust-pickle if you trust where it comes from"
    )
    torch.save({"epoch": 1}, path)
    assert error_of(str(path)).startswith(f"{path} holds neither a model nor weights: give file.py")
    path.write_bytes(pickle.dumps(model.state_dict(), protocol=4))
    assert re.search(
        r"w\.pt cannot be read by torch\.load .*; a source is file\.py", error_of(str(path))
    )


def test_torchscript_and_programs(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(2, 3)), tmp_path / "script.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(model).save(path)
    assert error_of(str(path)) == (
        f"{path} is TorchScript, which torch.export does not capture: give the module that it was "
        "made from, as file.py:factory, and its weights as --weights FILE, from "
        f"torch.save(torch.jit.load('{path}').state_dict(), FILE)"
    )
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    assert error_of(str(tmp_path / "program.pt")).endswith(
        "holds a program of torch.export: give it a name that ends with .pt2"
    )


def test_onnx_file() -> None:
    assert error_of("model.onnx") == (
        "model.onnx is an ONNX file, which is not a source: give the model that it was made from; "
        "`passfx tune`, `bench` and `deploy` take the file itself, and `passfx verify SOURCE "
        "model.onnx` proves it"
    )
