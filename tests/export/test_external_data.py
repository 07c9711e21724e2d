"""Weights that lie beside a file: where they are written, and what of them is read."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.testing import assert_close as assert_equal

from models.pass_layer import PassCNNAdd
from passfx.errors import ExportError
from passfx.export import onnx as export
from passfx.export.onnx import external_files, staged, summarize
from passfx.runtime.session import Session
from tests.export.models import exported, results
from tests.helpers import randomize


@pytest.fixture
def model() -> Any:
    return exported(PassCNNAdd(), torch.randn(1, 3, 5, 5))


@pytest.fixture
def _external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_INLINE_BYTES", 1000)


@pytest.mark.usefixtures("_external")
def test_large_weights_are_written_beside_the_model(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 5, 5)
    model = exported(randomize(PassCNNAdd()), x)
    path = tmp_path / "model.onnx"
    with staged(model, path) as (written, report):
        assert_equal(Session(written).run([x]), results(model, x), rtol=0, atol=0)
    data, name = sorted(tmp_path.iterdir(), key=lambda item: item.suffix)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert (name.name, data.name) == ("model.onnx", f"model.onnx.{digest[:12]}.data")
    size = sum(item.stat().st_size for item in tmp_path.iterdir())
    assert report.bytes == summarize(path).bytes == size
    assert_equal(Session(path).run([x]), results(model, x), rtol=0, atol=0)


def test_data_of_another_model_does_not_count(tmp_path: Path, model: Any) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"left by an older model")
    path = tmp_path / "model.onnx"
    with staged(model, path):
        pass
    assert summarize(path).bytes == path.stat().st_size


@pytest.mark.usefixtures("_external")
def test_the_data_of_the_replaced_file_goes_and_no_other(tmp_path: Path, model: Any) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "model.onnx.0123456789ab.data"
    other.write_bytes(b"of a file that was renamed")
    with staged(model, path):
        pass
    (first,) = external_files(path)
    weight = next(iter(model.graph.initializers.values()))
    weight.const_value = ir.tensor(weight.const_value.numpy() + 1)
    with staged(model, path):
        assert first.exists()
    (second,) = external_files(path)
    assert first != second
    assert sorted(tmp_path.iterdir()) == sorted([path, second, other])
    with staged(model, path):  # the same once more
        pass
    assert sorted(tmp_path.iterdir()) == sorted([path, second, other])


@pytest.mark.usefixtures("_external")
@pytest.mark.parametrize("failing", [".onnx", ".data"])
def test_a_failing_move_leaves_what_was_there(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "model.onnx"
    with staged(model, path):
        pass
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    weight = next(iter(model.graph.initializers.values()))
    weight.const_value = ir.tensor(weight.const_value.numpy() + 1)
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).suffix == failing:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError), staged(model, path):
        pass
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("_external")
def test_data_is_not_put_where_a_link_does_not_find_it(tmp_path: Path, model: Any) -> None:
    (tmp_path / "far").mkdir()
    for place in ("far/model.onnx", "near.onnx"):
        link = tmp_path / "link.onnx"
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / place)
        if place == "near.onnx":
            with staged(model, link):
                pass
            onnx.checker.check_model(str(link))
            assert link.is_symlink()
        else:
            with pytest.raises(ExportError, match="not found through the link .*link.onnx; give"):
                staged(model, link).__enter__()
            assert not list((tmp_path / "far").iterdir())


def _with_data(folder: Path, location: str) -> Path:
    """A file whose only weight is said to lie in another."""
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "g", ends[:1], ends[1:], [weight])
    path = folder / "model.onnx"
    onnx.external_data_helper.set_external_data(graph.initializer[0], location)
    graph.initializer[0].ClearField("raw_data")
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_data_in_a_folder_of_the_model(tmp_path: Path) -> None:
    path = _with_data(tmp_path, "weights/w.bin")
    with pytest.raises(ExportError, match=r"weights/w\.bin, which does not exist"):
        external_files(path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"\0" * 16)
    assert external_files(path) == [tmp_path / "weights" / "w.bin"]
    assert summarize(path).bytes == path.stat().st_size + 16


@pytest.mark.parametrize("location", ["../w", "a/../../w", "/w", "", ".", "C:\\w", "..\\w"])
def test_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w").write_bytes(b"\0" * 16)
    with pytest.raises(ExportError, match="reads nothing outside of its folder") as caught:
        external_files(_with_data(folder, location))
    assert "\n" not in str(caught.value)


def test_data_of_a_subgraph_counts(tmp_path: Path) -> None:
    path = _with_data(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    inner = onnx.load(path, load_external_data=False)
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner.graph)
    outer = onnx.helper.make_graph([node], "outer", [], inner.graph.output)
    onnx.save(onnx.helper.make_model(outer), path)
    assert external_files(path) == [tmp_path / "w.bin"]
