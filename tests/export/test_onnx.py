"""ONNX files: what is in them, that they run, and that a failure leaves nothing behind."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import passfx
from models.pass_layer import PassCNN, PassCNNAdd, PassVariants
from passfx.capture.program import Captured, capture
from passfx.errors import ExportError
from passfx.export.onnx import export_onnx, staged, summarize
from passfx.export.settings import ExportSettings
from passfx.graph.evaluate import run_flat
from passfx.runtime.reference import open_session
from passfx.verify.error import relative_error
from tests.helpers import randomize


class Function(nn.Module):
    """A module with a table of ones, around a function of at most two inputs."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(2))
        self.body = body

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.body(self, x) if y is None else self.body(self, x, y)


def image(*shape: int) -> Tensor:
    return torch.randn(shape)


def write(path: Path, found: Captured, **options: Any) -> onnx.ModelProto:
    """Export a captured graph as it is; the file must pass the full check."""
    with staged(export_onnx(found.graph_module, found, ExportSettings(**options)), path):
        pass
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def assert_runs(path: Path, found: Captured, tolerance: float = 2e-6) -> None:
    """The file gives what the captured graph gives, under ONNX Runtime."""
    inputs = [item for item in found.flat_inputs if isinstance(item, Tensor)]
    wanted = run_flat(found.graph_module, found.flat_inputs, double=False)
    expected = [item for item in wanted if isinstance(item, Tensor)]
    for result, reference in zip(open_session(path).run(inputs), expected, strict=True):
        assert (result.dtype, result.shape) == (reference.dtype, reference.shape)
        assert relative_error(result, reference) <= tolerance


def converted(folder: Path, model: nn.Module, *args: Any, **options: Any) -> onnx.ModelProto:
    found = capture(model, args)
    model_proto = write(folder / "model.onnx", found, **options)
    assert_runs(folder / "model.onnx", found)
    return model_proto


def names(values: Any) -> list[str]:
    return [item.name for item in values]


def test_parts_of_an_axis_are_a_gather_each(tmp_path: Path) -> None:
    def heads(m: nn.Module, x: Tensor) -> Tensor:
        query, _, value = x.unbind(-2)
        return query * value.unbind()[0] - value

    model = converted(tmp_path, Function(heads), image(2, 4, 3, 5))
    assert [node.op_type for node in model.graph.node] == ["Gather"] * 3 + ["Mul", "Sub"]


class EveryOpset(nn.Module):
    """Operators whose definition changed between opsets 18 and 22."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.layer_norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.norm(self.conv(x)), (1, 1, 1, 1), mode="reflect")
        x = F.gelu(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear"))
        x = x.amax((2, 3)) + F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.layer_norm(x).softmax(-1)


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    model = converted(tmp_path, EveryOpset(), image(1, 3, 6, 6), opset=opset)
    assert {item.domain: item.version for item in model.opset_import} == {"": opset}
    assert summarize(tmp_path / "model.onnx").opset == opset


# Names.


def test_inputs_outputs_and_weights_have_the_names_of_the_model(tmp_path: Path) -> None:
    model = converted(tmp_path, randomize(PassVariants()), image(1, 8, 5, 5))
    assert (names(model.graph.input), names(model.graph.output)) == (["x"], ["output"])
    weights = names(model.graph.initializer)
    assert "scaled.body.0.weight" in weights and "scaled.skip.factor" in weights


def test_folded_weights_have_the_names_of_the_parameters(tmp_path: Path) -> None:
    optimized = passfx.optimize(randomize(PassCNNAdd()), (image(1, 3, 5, 5),))
    optimized.export(tmp_path / "model.onnx")
    found = names(onnx.load(tmp_path / "model.onnx").graph.initializer)
    assert sorted(found) == [
        "conv1.bias", "conv1.weight", "pass_layer.0.bias", "pass_layer.0.weight",
    ]  # fmt: skip


def test_given_names(tmp_path: Path) -> None:
    found = capture(Function(lambda m, x, y: (x + y, x * y)), (image(2), image(2)))
    model = write(
        tmp_path / "model.onnx", found, input_names=["a", "b"], output_names=["sum", "product"]
    )
    assert names(model.graph.input) == ["a", "b"]
    assert names(model.graph.output) == ["sum", "product"]
    assert_runs(tmp_path / "model.onnx", found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_names": ["a"]}, r"2 input\(s\) \(x, y\), not 1"),
        ({"output_names": ["a", "b"]}, r"1 output\(s\) \(output\), not 2"),
    ],
)
def test_the_wrong_number_of_names(options: Any, message: str) -> None:
    found = capture(Function(lambda m, x, y: x + y), (image(2), image(2)))
    with pytest.raises(ExportError, match=message):
        export_onnx(found.graph_module, found, ExportSettings(**options))


def test_names_that_would_collide_are_made_different(tmp_path: Path) -> None:
    class Echo(nn.Module):
        def forward(self, output: Tensor, a: Tensor) -> Any:
            return {"output": output + 1, "a": a + 2}

    model = converted(tmp_path, Echo(), image(2), image(2))
    assert names(model.graph.input) == ["output", "a"]
    assert names(model.graph.output) == ["output_1", "a_1"]


def test_dynamic_axes_are_named(tmp_path: Path) -> None:
    model = randomize(PassCNNAdd())
    shapes = {"x": {0: Dim("items"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    found = capture(model, (image(1, 3, 5, 5),), dynamic_shapes=shapes)
    written = write(tmp_path / "model.onnx", found)
    for value in (written.graph.input[0], written.graph.output[0]):
        first, channels, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param == "items" and channels.dim_value in (3, 64)
        assert [item.dim_param for item in rest] == ["x_2", "x_3"]
    x = image(4, 3, 7, 6)
    (result,) = open_session(tmp_path / "model.onnx").run([x])
    assert relative_error(result, model.eval()(x)) <= 2e-6


class Named(nn.Module):
    """A parameter and an output by the names that the tracer gives to operators."""

    def __init__(self) -> None:
        super().__init__()
        self.cat = nn.Parameter(torch.randn(1, 4, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.cat([x, x.flip(1)], 1) + self.cat
        return {"softmax": y.relu(), "relu": y.softmax(-1)}


def test_names_that_operators_have_too(tmp_path: Path) -> None:
    """The exporter's optimiser took the shape of the parameter for that of the concatenation."""
    found = capture(Named(), (image(2, 2, 3),), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    written = write(tmp_path / "model.onnx", found)
    (total,) = (node.output[0] for node in written.graph.node if node.op_type == "Add")
    shapes = {item.name: item.type.tensor_type.shape.dim for item in written.graph.value_info}
    assert shapes[total][0].dim_param == "batch"
    assert names(written.graph.output) == ["softmax", "relu"]
    assert "cat" in names(written.graph.initializer)
    assert_runs(tmp_path / "model.onnx", found)


def test_metadata(tmp_path: Path) -> None:
    optimized = passfx.optimize(randomize(PassCNNAdd()), (image(1, 3, 5, 5),))
    optimized.export(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.producer_name, model.producer_version) == ("passfx", passfx.__version__)
    assert {item.key: item.value for item in model.metadata_props}["passfx.version"] == (
        passfx.__version__
    )
    scopes = [
        next(item.value for item in node.metadata_props if item.key.endswith("name_scopes"))
        for node in model.graph.node
    ]
    for module in ("conv1", "pass_layer.0", "relu"):
        assert sum(repr(module) in scope for scope in scopes) == 1


# Models of unusual form.


def twice(module: Function, x: Tensor) -> Any:
    y = x + 1
    return y, y, x, x


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (lambda m, x: x, [image(2)]),
        (lambda m, x: (x, x * 2), [image(2)]),
        (lambda m, x: (x + 1, m.table), [image(2)]),
        (lambda m, x: m.table, [image(2)]),
        (lambda m, x: (m.table, x * 2, m.table), [image(2)]),
        (twice, [image(2)]),
        (lambda m, x: (x + 1, None, x * 2), [image(2)]),
        (lambda m, x: {"a": x + 1, "b": (None, x)}, [image(2)]),
        (lambda m, x: {"name": "text", "a": x + 1, "count": 3, "scale": 0.5}, [image(2)]),
        (lambda m, x, y: (F.embedding(x, torch.eye(4)), ~y, x + 1),
         [torch.tensor([[1, 3]]), torch.tensor([True, False])]),
        (lambda m, x: x * 2, [torch.tensor(3.0)]),
        (lambda m, x: x * 2, [torch.zeros(0, 3)]),
    ],
    ids=["input", "input and more", "constant and more", "constant", "constant twice", "twice",
         "none", "nested none", "no tensors", "integers and booleans", "scalar", "empty"],
)  # fmt: skip
def test_unusual_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: Callable[..., Any], inputs: Any
) -> None:
    model = converted(tmp_path, Function(body), *inputs)
    assert len(model.graph.input) == len(inputs)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_sizes_among_the_results_have_no_place(tmp_path: Path) -> None:
    body = Function(lambda m, x: (x.shape[0], x + 1))
    optimized = passfx.optimize(body, (image(2),), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert optimized.module(image(5))[0] == 5
    optimized.export(tmp_path / "model.onnx")
    assert names(onnx.load(tmp_path / "model.onnx").graph.output) == ["output_1"]


@pytest.mark.parametrize("body", [lambda m, x: None, lambda m, x: {"count": 3}])
def test_a_model_without_a_tensor_among_its_results(tmp_path: Path, body: Any) -> None:
    optimized = passfx.optimize(Function(body), (image(2),))
    with pytest.raises(ExportError, match="the model returns no tensor"):
        optimized.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_unused_inputs_stay(tmp_path: Path) -> None:
    model = converted(tmp_path, Function(lambda m, x, y: x + 1), image(2), image(3))
    assert names(model.graph.input) == ["x", "y"]


def test_inputs_that_are_no_tensors_are_left_out(tmp_path: Path) -> None:
    class Options(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None, count: int, y: Tensor) -> Tensor:
            return x * count + y if mask is None else x * mask

    model = converted(tmp_path, Options(), image(2), None, 4, image(2))
    assert names(model.graph.input) == ["x", "y"]


def test_shared_constants_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64, bias=False)
            self.second = nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu()) + self.first(x)

    model = converted(tmp_path, Tied(), image(1, 64))
    assert sum(item.dims[:] == [64, 64] for item in model.graph.initializer) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    found = capture(randomize(PassCNNAdd()).to(dtype), (image(1, 3, 5, 5).to(dtype),))
    write(tmp_path / "model.onnx", found)
    assert_runs(tmp_path / "model.onnx", found, tolerance=20 * torch.finfo(dtype).eps)


def test_dead_code_is_not_written(tmp_path: Path) -> None:
    model = converted(tmp_path, randomize(PassCNN()), image(1, 3, 5, 5))
    assert not any("conv1" in name for name in names(model.graph.initializer))
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1


# Failures.


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (lambda m, x: x.cummax(0)[0], "aten.cummax"),
        (lambda m, x: torch.linalg.svdvals(x[None]), "aten._linalg_svd"),
    ],
)
def test_an_operator_without_translation(body: Callable[..., Any], operator: str) -> None:
    found = capture(Function(body), (image(4),))
    with pytest.raises(ExportError) as error:
        export_onnx(found.graph_module, found)
    message = str(error.value)
    assert message.startswith("torch's ONNX exporter cannot write this model: ")
    assert operator in message
    assert "\n" not in message


def test_bfloat16_needs_a_late_opset() -> None:
    found = capture(PassCNNAdd().bfloat16(), (image(1, 3, 5, 5).bfloat16(),))
    with pytest.raises(ExportError, match="bfloat16 operators need opset 22 or later, not 20"):
        export_onnx(found.graph_module, found)


@pytest.fixture
def model() -> Any:
    found = capture(PassCNNAdd(), (image(1, 3, 5, 5),))
    return export_onnx(found.graph_module, found)


def test_a_failure_in_the_block_leaves_what_was_there(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyError), staged(model, path) as (written, _):
        assert written.exists() and written != path
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_an_invalid_model_leaves_nothing(tmp_path: Path, model: Any) -> None:
    model.graph.node(-1).op_type = "NoSuchOperator"
    with (
        pytest.raises(ExportError, match="not valid ONNX: .*NoSuchOperator"),
        staged(model, tmp_path / "model.onnx"),
    ):
        raise AssertionError("the file was not checked")
    assert not os.listdir(tmp_path)


def test_success_replaces_what_was_there(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with staged(model, path) as (_, found):
        assert path.read_bytes() == b"old"
    assert found.path == str(path)
    assert found.bytes == path.stat().st_size
    assert found.nodes == sum(found.ops.values()) == len(onnx.load(path).graph.node)
    assert found.ops["Conv"] == 2
    assert os.listdir(tmp_path) == ["model.onnx"]


# Reading.


def test_files_that_are_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="model.onnx does not exist"):
        summarize(path)
    path.write_bytes(b"\xff not a model")
    with pytest.raises(ExportError, match="model.onnx is not an ONNX file"):
        summarize(path)
