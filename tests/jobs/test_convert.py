"""`passfx.convert`: from a source to a proven file, and the report of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import passfx
from models import digits
from passfx.errors import ExportError, SourceError, VerificationError
from passfx.report.model import Report
from passfx.version import __version__
from tests.helpers import randomize

DIGITS = Path(digits.__file__)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))) + y


@pytest.fixture
def small() -> nn.Module:
    return randomize(Small()).eval()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 3, 5, 5), torch.randn(1, 4, 5, 5)


# the trained example


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    return path, passfx.convert(f"{DIGITS}:digits_resnet", path, dynamic_batch=True)


def test_digits_file_predicts_what_the_model_does(digits_file: tuple[Path, Report]) -> None:
    pytest.importorskip("sklearn")
    split, model = digits.load_split(), digits.digits_resnet()
    session = onnxruntime.InferenceSession(str(digits_file[0]), providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"x": images.numpy()})
        return torch.from_numpy(logits)

    with torch.no_grad():
        expected = model(split.test_images)
    result = predict(split.test_images)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(result.argmax(1), expected.argmax(1))
    labels = split.test_labels
    own = digits.accuracy(model, split.test_images, labels)
    assert digits.accuracy(predict, split.test_images, labels) == own > 0.98


def test_digits_file_is_what_the_report_says(digits_file: tuple[Path, Report]) -> None:
    path, report = digits_file
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    convolved = {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert not convolved & {node.input[0] for node in norms}
    assert report.onnx is not None
    assert report.onnx.path == str(path)
    assert report.onnx.bytes == path.stat().st_size
    assert report.onnx.nodes == len(model.graph.node) == sum(report.onnx.ops.values())
    assert report.opset == 20
    assert [path.name for path in path.parent.iterdir()] == ["digits.onnx"]
    assert report.parity is not None and report.parity.passed
    assert report.parity.provider == "CPUExecutionProvider"
    assert report.before.ops["batch_norm"] == 20
    assert report.after.ops.get("batch_norm", 0) <= 3  # on the identity branches of RepVGG
    assert report.after.macs <= report.before.macs


# the report


TENSOR = {"name": str, "dtype": str, "shape": [(int, str)]}
GRAPH = {"nodes": int, "ops": {str: int}, "macs": int, "params": int, "weight_bytes": int}
SCHEMA = {  # DESIGN §7
    "passfx": str,
    "source": str,
    "target": str,
    "precision": str,
    "opset": int,
    "inputs": [TENSOR],
    "outputs": [TENSOR],
    "graph": {"before": GRAPH, "after": GRAPH},
    "shortcuts": [
        {
            "kind": str,
            "merge_op": str,
            "fork": str,
            "merge": str,
            "module": str,
            "path": [str],
            "body": [str],
            "collapsible": bool,
        }
    ],
    "passes": [
        {
            "name": str,
            "seconds": float,
            "rolled_back": bool,
            "rewrites": [
                {
                    "at": str,
                    "module": str,
                    "what": str,
                    "removed": [str],
                    "added": [str],
                    "error": (float, type(None)),
                }
            ],
            "refusals": [{"at": str, "module": str, "reason": str}],
        }
    ],
    "parity": {
        "provider": str,
        "samples": int,
        "max_abs_error": float,
        "rel_error": float,
        "baseline_rel_error": float,
        "tolerance": float,
        "passed": bool,
    },
    "onnx": {"path": str, "bytes": int, "nodes": int, "ops": {str: int}},
    "seconds": {
        "capture": float,
        "passes": float,
        "verify": float,
        "export": float,
        "total": float,
    },
}


def mismatches(item: Any, schema: Any, at: str = "report") -> list[str]:
    """Where a JSON value lacks a key or has another type; more keys are allowed."""
    if isinstance(schema, list):
        if not isinstance(item, list):
            return [f"{at} is no list"]
        return [
            found
            for number, inner in enumerate(item)
            for found in mismatches(inner, schema[0], f"{at}[{number}]")
        ]
    if isinstance(schema, dict):
        if not isinstance(item, dict):
            return [f"{at} is no object"]
        if str in schema:
            schema = dict.fromkeys(item, schema[str])
        missing = [f"{at}.{key} is missing" for key in schema if key not in item]
        return missing + [
            found
            for key in schema.keys() & item.keys()
            for found in mismatches(item[key], schema[key], f"{at}.{key}")
        ]
    wanted = schema if isinstance(schema, tuple) else (schema,)
    return [] if type(item) in wanted else [f"{at} is a {type(item).__name__}"]


def test_report_has_the_keys_of_the_contract(digits_file: tuple[Path, Report]) -> None:
    report = json.loads(json.dumps(digits_file[1].to_dict(), allow_nan=False))
    assert mismatches(report, SCHEMA) == []
    assert report["passfx"] == __version__
    assert report["source"] == f"{DIGITS}:digits_resnet"
    assert (report["target"], report["precision"]) == ("cpu", "fp32")
    assert report["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert report["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]
    assert {item["kind"] for item in report["shortcuts"]} == {"identity", "projection"}
    assert {item["merge_op"] for item in report["shortcuts"]} == {"add"}
    assert [item["name"] for item in report["passes"]] == [kind.name for kind in passfx.PASSES]
    assert sum(len(item["rewrites"]) for item in report["passes"]) >= 14
    seconds = report["seconds"]
    parts = sum(value for key, value in seconds.items() if key != "total")
    assert seconds["total"] == pytest.approx(parts)
    assert all(seconds.values())


def test_mismatches_are_found() -> None:
    """The check above can fail."""
    assert mismatches({"a": 1}, {"a": str, "b": [int]}) == [
        "report.b is missing",
        "report.a is a int",
    ]
    assert mismatches([1, True], [int]) == ["report[1] is a bool"]


# sources and models


def test_module_with_its_inputs(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor]
) -> None:
    report = passfx.convert(small, tmp_path / "small.onnx", inputs[:1], {"y": inputs[1]})
    assert report.source == "Small"
    assert [item.name for item in report.inputs] == ["x", "y"]
    assert (tmp_path / "small.onnx").exists()


@pytest.fixture
def line(tmp_path: Path) -> str:
    (tmp_path / "line.py").write_text(
        "import torch\n"
        "def build(width=2): return torch.nn.Linear(3, width)\n"
        "def example_inputs(): return torch.randn(1, 3)\n"
    )
    return f"{tmp_path / 'line.py'}:build"


def test_stages_are_told(tmp_path: Path, line: str) -> None:
    stages: list[str] = []
    path = str(tmp_path / "a.onnx")
    passfx.convert(line, path, only=["remove-unused"], progress=stages.append)
    assert list(dict.fromkeys(stages)) == ["load", "capture", "remove-unused", "export", "verify"]


def test_factory_arguments_weights_and_shapes(tmp_path: Path, line: str) -> None:
    trained, x = nn.Linear(3, 4), torch.randn(5, 3)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    report = passfx.convert(
        line,
        tmp_path / "a.onnx",
        arguments={"width": 4},
        weights=tmp_path / "w.pt",
        input_shapes=["5x3"],
    )
    assert report.inputs[0].shape == (5, 3)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), trained(x))


def test_part_of_a_checkpoint(tmp_path: Path, line: str) -> None:
    last, average = nn.Linear(3, 4), nn.Linear(3, 4)
    parts = {"model": last.state_dict(), "ema": {"module": average.state_dict()}}
    torch.save({**parts, "partial": {"weight": last.weight}}, tmp_path / "w.pth")
    for options, expected in (
        ({}, last.bias),
        ({"weights_key": "ema"}, average.bias),
        ({"weights_key": "partial", "strict": False}, None),
    ):
        report = passfx.convert(
            *(line, tmp_path / "a.onnx"),
            **{"arguments": {"width": 4}, "weights": tmp_path / "w.pth", "input_shapes": ["5x3"]},
            **options,
        )
        assert report.notes[0].startswith(f"weights from {tmp_path / 'w.pth'}: ")
        held = [onnx.numpy_helper.to_array(item) for item in
                onnx.load(tmp_path / "a.onnx").graph.initializer]  # fmt: skip
        biases = [item for item in held if item.shape == (4,)]
        if expected is not None:
            assert any(np.array_equal(item, expected.detach().numpy()) for item in biases)
        else:
            assert "lacks bias" in report.notes[1]


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "w.pt"},
        {"weights_key": "ema"},
        {"arguments": {"width": 3}},
        {"input_shapes": ["1x3x5x5"]},
    ],
)
def test_a_model_takes_nothing_of_a_source(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor], options: Any
) -> None:
    with pytest.raises(SourceError, match="are for a source, not a model"):
        passfx.convert(small, tmp_path / "a.onnx", inputs, **options)


def test_a_source_takes_inputs_instead_of_its_own(tmp_path: Path) -> None:
    x = torch.randn(3, 1, 8, 8)
    report = passfx.convert(f"{DIGITS}:digits_resnet", tmp_path / "a.onnx", x)
    assert report.inputs[0].shape == (3, 1, 8, 8)
    with pytest.raises(SourceError, match="input_shapes stands instead of args and kwargs"):
        passfx.convert(f"{DIGITS}:digits_resnet", tmp_path / "b.onnx", x, input_shapes=["1x1x8x8"])


# dynamic sizes


def test_dynamic_axes(tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
    report = passfx.convert(
        small,
        tmp_path / "a.onnx",
        inputs,
        dynamic_batch=True,
        dynamic_axes={"x": [2, 3], "y": [2, 3]},
    )
    assert report.inputs[0].shape == ("batch", 3, "x_2", "x_3")
    assert report.inputs[1].shape == ("batch", 4, "x_2", "x_3")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    x, y = torch.randn(3, 3, 8, 6), torch.randn(3, 4, 8, 6)
    (result,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), small(x, y), rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Takes a mask for each sample, or one for all, and reads them in two ways."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.shape[0] == 1:
            return x * mask
        return x * mask[torch.arange(x.shape[0])]


def test_a_dynamic_batch_is_one_where_inputs_of_other_sizes_would_be_wrong(tmp_path: Path) -> None:
    example = torch.randn(1, 3), torch.rand(1, 3)
    report = passfx.convert(Masked(), tmp_path / "a.onnx", example, dynamic_batch=True)
    assert [info.shape for info in report.inputs] == [("batch", 3), ("batch", 3)]
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    for batch in (1, 2, 5):
        x, mask = torch.randn(batch, 3), torch.rand(batch, 3)
        (result,) = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), Masked()(x, mask))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"z": [0]}, "there is no input 'z'; the inputs are x, y"),
        ({"x": [4]}, "input 'x' has 4 axes, so none is number 4"),
        ({"x": [-1]}, "input 'x' has 4 axes, so none is number -1"),
    ],
)
def test_wrong_dynamic_axes(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor], axes: Any, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        passfx.convert(small, tmp_path / "a.onnx", inputs, dynamic_axes=axes)


def test_dynamic_options_that_exclude_each_other(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(SourceError, match="dynamic_shapes stands instead of"):
        passfx.convert(
            small, tmp_path / "a.onnx", inputs, dynamic_batch=True, dynamic_shapes={"x": None}
        )
    program = torch.export.export(small, inputs)
    with pytest.raises(SourceError, match="dynamic sizes were fixed when it was made"):
        passfx.convert(program, tmp_path / "a.onnx", dynamic_batch=True)


def test_inputs_that_the_model_does_not_take(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor]
) -> None:
    for dynamic in (False, True):
        with pytest.raises(passfx.PassfxError, match="does not take these inputs: missing a .*'y'"):
            passfx.convert(small, tmp_path / "a.onnx", inputs[:1], dynamic_batch=dynamic)


# nothing is left behind


@pytest.mark.parametrize("rtol", [-1.0, float("nan")])
def test_failed_verification_leaves_the_old_file(
    tmp_path: Path, small: nn.Module, inputs: tuple[Tensor, Tensor], rtol: float
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(VerificationError, match="disagrees with the model"):
        passfx.convert(small, path, inputs, rtol=rtol)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_options_are_refused_before_any_work(tmp_path: Path) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("captured")

    model, inputs = Never(), (torch.zeros(1),)
    for options, error in (
        ({"opset": 9}, ExportError),
        ({"precision": "bf16"}, ExportError),
        ({"target": "tpu"}, SourceError),
        ({"skip": ["nope"]}, SourceError),
    ):
        with pytest.raises(error):
            passfx.convert(model, tmp_path / "a.onnx", inputs, **options)  # type: ignore[arg-type]
    with pytest.raises(ExportError):
        passfx.convert(model, tmp_path / "gone" / "a.onnx", inputs)
    assert not list(tmp_path.iterdir())
