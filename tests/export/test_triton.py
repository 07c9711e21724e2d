"""Triton model repositories: valid, complete, and never half-written."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from google.protobuf import text_format
from onnx import TensorProto, helper
from torch import nn

import passfx
from passfx.errors import ExportError
from passfx.export.triton import TritonSettings, write_triton
from passfx.runtime import Options, Session

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")

X = torch.randn(2, 3)


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    passfx.convert(nn.Linear(3, 300), tmp_path / "net.onnx", (X,))
    return tmp_path / "net.onnx"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    passfx.convert(nn.Linear(3, 300), tmp_path / "net.onnx", (X,), dynamic_batch=True)
    return tmp_path / "net.onnx"


def config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def test_a_fixed_batch(tmp_path: Path, fixed: Path) -> None:
    written = write_triton(fixed, tmp_path / "models", TritonSettings(name="net"))
    folder = tmp_path / "models" / "net"
    assert written.folder == folder
    assert written.files == (folder / "config.pbtxt", folder / "1" / "model.onnx")
    found = config(folder)
    assert (found.name, found.backend, found.max_batch_size) == ("net", "onnxruntime", 0)
    assert [(item.name, item.data_type, list(item.dims)) for item in found.input] == [
        ("input", pb.TYPE_FP32, [2, 3])
    ]
    assert [list(item.dims) for item in found.output] == [[2, 300]]
    assert [(item.kind, item.count) for item in found.instance_group] == [
        (pb.ModelInstanceGroup.KIND_AUTO, 1)
    ]
    assert not found.HasField("dynamic_batching")
    deployed = Session(folder / "1" / "model.onnx").run([X])[0]
    assert torch.equal(deployed, Session(fixed).run([X])[0])


def test_a_batch_that_varies_is_batched(tmp_path: Path, dynamic: Path) -> None:
    settings = TritonSettings(
        "net", provider="cpu", batches=(1, 8, 64), instances=3, max_queue_delay=500
    )
    write_triton(dynamic, tmp_path / "a", settings)
    found = config(tmp_path / "a" / "net")
    assert found.max_batch_size == 64
    assert [list(item.dims) for item in (*found.input, *found.output)] == [[3], [300]]
    assert list(found.dynamic_batching.preferred_batch_size) == [8, 64]
    assert found.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(item.kind, item.count) for item in found.instance_group] == [
        (pb.ModelInstanceGroup.KIND_CPU, 3)
    ]
    write_triton(dynamic, tmp_path / "b", TritonSettings(name="net"))
    assert config(tmp_path / "b" / "net").max_batch_size == 32
    write_triton(dynamic, tmp_path / "c", TritonSettings(name="net", max_batch_size=0))
    assert list(config(tmp_path / "c" / "net").input[0].dims) == [-1, 3]


@pytest.mark.parametrize(("provider", "kind"), [("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_a_provider_is_a_kind(tmp_path: Path, fixed: Path, provider: str, kind: str) -> None:
    write_triton(fixed, tmp_path / "a", TritonSettings("net", provider=provider))
    assert config(tmp_path / "a" / "net").instance_group[
        0
    ].kind == pb.ModelInstanceGroup.Kind.Value(kind)


def test_options_of_the_gpu(tmp_path: Path, fixed: Path) -> None:
    options = Options("cuda", prefer_nhwc=True, tf32=False, cuda_graph=True,
                      conv_algo_search="HEURISTIC", memory_pattern=False)  # fmt: skip
    written = write_triton(
        fixed, tmp_path / "a", TritonSettings(name="net", options=options.differences())
    )
    found = config(tmp_path / "a" / "net")
    (accelerator,) = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters) == {
        "prefer_nhwc": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC",
    }  # fmt: skip
    assert found.parameters["enable_mem_pattern"].string_value == "0"
    assert written.ignored == ("cuda_graph=True",)
    text = (tmp_path / "a" / "net" / "config.pbtxt").read_text()
    assert "# Triton's ONNX Runtime backend has no key for: cuda_graph=True." in text


def test_options_of_the_cpu(tmp_path: Path, fixed: Path) -> None:
    options = Options(threads=3, layout=False, spinning=False)
    settings = TritonSettings("net", provider="cpu", options=options.differences())
    written = write_triton(fixed, tmp_path / "a", settings)
    found = config(tmp_path / "a" / "net")
    assert found.parameters["intra_op_thread_count"].string_value == "3"
    assert found.optimization.graph.level == 1
    assert written.ignored == ("spinning=False",)


def model_of(path: Path, *kinds: int, shape: tuple[int | str, ...] = (2,)) -> Path:
    ends = [
        [helper.make_tensor_value_info(f"{end}{number}", kind, shape)
         for number, kind in enumerate(kinds)]
        for end in "xy"
    ]  # fmt: skip
    nodes = [helper.make_node("Identity", [f"x{n}"], [f"y{n}"]) for n in range(len(kinds))]
    graph = helper.make_graph(nodes, "g", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_several_inputs_of_every_type(tmp_path: Path) -> None:
    kinds = (TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL, TensorProto.BFLOAT16)
    model = model_of(tmp_path / "m.onnx", *kinds, shape=("n", "length"))
    write_triton(model, tmp_path / "a", TritonSettings(name="net"))
    found = config(tmp_path / "a" / "net")
    types = [pb.TYPE_FP16, pb.TYPE_INT64, pb.TYPE_BOOL, pb.TYPE_BF16]
    assert [item.data_type for item in found.input] == types
    assert [item.name for item in found.output] == ["y0", "y1", "y2", "y3"]
    assert {tuple(item.dims) for item in found.input} == {(-1,)}


def test_weights_beside_the_model_come_along(tmp_path: Path, fixed: Path) -> None:
    loaded = onnx.load(fixed)
    onnx.save(loaded, fixed, save_as_external_data=True, location="net.data", size_threshold=0)
    write_triton(fixed, tmp_path / "a", TritonSettings(name="net"))
    place = tmp_path / "a" / "net" / "1"
    assert sorted(os.listdir(place)) == ["model.onnx", "net.data"]
    assert Session(place / "model.onnx").run([X])[0].shape == (2, 300)


def test_a_second_version_joins_the_first(tmp_path: Path, fixed: Path) -> None:
    write_triton(fixed, tmp_path / "a", TritonSettings(name="net"))
    with pytest.raises(ExportError, match=r"net/1 exists already; --version writes another one"):
        write_triton(fixed, tmp_path / "a", TritonSettings(name="net"))
    write_triton(fixed, tmp_path / "a", TritonSettings(name="net", version=2))
    assert sorted(os.listdir(tmp_path / "a" / "net")) == ["1", "2", "config.pbtxt"]
    other = model_of(tmp_path / "m.onnx", TensorProto.FLOAT)
    with pytest.raises(ExportError, match="describes another model, and all versions share it"):
        write_triton(other, tmp_path / "a", TritonSettings(name="net", version=3))
    assert sorted(os.listdir(tmp_path / "a" / "net")) == ["1", "2", "config.pbtxt"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü"])
def test_names_that_triton_does_not_take(tmp_path: Path, fixed: Path, name: str) -> None:
    with pytest.raises(ExportError, match="cannot be the name of a model in Triton"):
        write_triton(fixed, tmp_path / "a", TritonSettings(name=name))


def test_what_cannot_be_served_leaves_nothing(tmp_path: Path, fixed: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    complex_ = model_of(tmp_path / "m.onnx", TensorProto.COMPLEX64)
    for model, options, said in (
        (tmp_path / "gone.onnx", {}, "does not exist"),
        (tmp_path / "text.onnx", {}, "is not an ONNX file"),
        (complex_, {}, "Triton has no type for x0"),
        (fixed, {"max_batch_size": 8}, "has a fixed batch, so --max-batch-size must be 0"),
    ):
        with pytest.raises(ExportError, match=said):
            write_triton(model, tmp_path / "a", TritonSettings(name="net", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


def test_an_interrupted_copy_leaves_nothing(
    tmp_path: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(ExportError, match="cannot be written: No space left on device"):
        write_triton(fixed, tmp_path / "a", TritonSettings(name="net"))
    assert os.listdir(tmp_path / "a") == []


def test_without_tritonclient_there_is_advice(
    tmp_path: Path, fixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(ExportError, match=r"pip install 'passfx\[triton\]'"):
        write_triton(fixed, tmp_path / "a", TritonSettings(name="net"))
