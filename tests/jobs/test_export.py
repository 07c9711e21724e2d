"""`Optimized.export`: what is written, what is refused, and that nothing is left behind."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import passfx
from passfx.errors import ExportError, RuntimeUnavailableError, VerificationError
from passfx.graph.query import is_call
from passfx.jobs.optimize import Optimized
from tests.jobs.blocks import Block, Nested, make_block, nested_inputs, spoil_norms

aten = torch.ops.aten


def test_wrong_result_is_an_error(
    block: Block, image: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil_norms(monkeypatch)
    wrong = passfx.optimize(block, (image,), verify=False)
    assert not any(is_call(node, aten.batch_norm) for node in wrong.module.graph.nodes)
    with pytest.raises(VerificationError, match="under CPUExecutionProvider its relative error"):
        wrong.export(tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())
    assert wrong.export(tmp_path / "wrong.onnx", verify=False).parity is None


@pytest.mark.parametrize(
    ("dtype", "opset", "provider"),
    [
        (torch.float16, 20, "CPUExecutionProvider"),
        (torch.bfloat16, 22, "onnx.reference"),  # the first opset whose Conv takes bfloat16
        (torch.float64, 20, "onnx.reference"),
    ],
)
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype, opset: int, provider: str) -> None:
    model, x = make_block().to(dtype), torch.randn(1, 4, 5, 5, dtype=dtype)
    optimized = passfx.optimize(model, (x,))
    assert {item.dtype for item in optimized.module.state_dict().values()} == {dtype}
    report = optimized.export(tmp_path / "block.onnx", opset=opset)
    name = str(dtype).removeprefix("torch.")
    assert [item.dtype for item in (*report.inputs, *report.outputs)] == [name, name]
    assert report.parity is not None and report.parity.provider == provider
    graph = onnx.load(tmp_path / "block.onnx").graph
    kinds = {
        onnx.helper.tensor_dtype_to_np_dtype(item.data_type).name for item in graph.initializer
    }
    assert kinds == {name}


def test_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    items, pair = nested_inputs()
    optimized = passfx.optimize(Nested(), (items,), {"pair": pair})
    report = optimized.export(
        tmp_path / "a.onnx", input_names=["p", "q", "r", "s"], output_names=["t", "u", "v"]
    )
    graph = onnx.load(tmp_path / "a.onnx").graph
    for infos, found, names in (
        (report.inputs, graph.input, "pqrs"),
        (report.outputs, graph.output, "tuv"),
    ):
        assert [item.name for item in infos] == list(names) == [item.name for item in found]
    with pytest.raises(ExportError, match=r"the model has 4 input\(s\) \(.*\), not 1"):
        optimized.export(tmp_path / "b.onnx", input_names=["p"])
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]


def test_places_where_nothing_can_be_written(tmp_path: Path, optimized: Optimized) -> None:
    with pytest.raises(ExportError, match="is a folder; give the name of the file"):
        optimized.export(tmp_path)
    with pytest.raises(ExportError, match=r"the folder .*gone does not exist; create it first"):
        optimized.export(tmp_path / "gone" / "a.onnx")


def test_full_disk(tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ExportError, match=r"a\.onnx cannot be written: No space left on device"):
        optimized.export(tmp_path / "a.onnx", verify=False)
    assert not list(tmp_path.iterdir())


def test_unknown_precisions(tmp_path: Path, optimized: Optimized) -> None:
    with pytest.raises(ExportError, match="'int8' is not one of fp32, fp16, bf16"):
        optimized.export(tmp_path / "a.onnx", "int8")


@pytest.mark.parametrize("opset", [17, 26])
def test_opsets_beyond_the_range(tmp_path: Path, optimized: Optimized, opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not supported: 18 to 25 are"):
        optimized.export(tmp_path / "a.onnx", opset=opset)


@pytest.mark.parametrize("opset", [18, 25])
def test_opsets_at_the_ends_of_the_range(tmp_path: Path, optimized: Optimized, opset: int) -> None:
    report = optimized.export(tmp_path / "a.onnx", opset=opset)
    assert report.opset == opset
    (own,) = (item.version for item in onnx.load(tmp_path / "a.onnx").opset_import)
    assert own == opset


def test_without_onnxruntime(
    tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'passfx\[cpu\]'"):
        optimized.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    assert optimized.export(tmp_path / "a.onnx", verify=False).onnx is not None


def test_file_that_onnxruntime_cannot_run_is_an_error(
    tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Fatal error: no such kernel\nand more")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(ExportError, match=r"^a\.onnx does not run: RuntimeError: Fatal.* kernel$"):
        optimized.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
