"""Capture: what it keeps, what it leaves as it was, what it refuses and in which words."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from models.pass_layer import PassCNN, PassCNNAdd, PassVariants
from models.resnet import resnet18
from passfx.capture.program import capture
from passfx.errors import CaptureError
from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_call, module_path, source_line
from passfx.verify.error import relative_error
from tests.capture.programs import (
    BATCH,
    assert_captures,
    assert_functional,
    function,
    image,
)
from tests.helpers import captured, ops, randomize


def test_every_value_has_metadata_of_its_shape_and_dtype() -> None:
    model = resnet18("d")
    graph_module = captured(model, image(2, 3, 33, 47)).graph_module
    seen = 0

    class Compare(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            nonlocal seen
            result = super().run_node(node)
            if isinstance(result, Tensor):
                fake = node.meta["val"]
                assert (fake.shape, fake.dtype) == (result.shape, result.dtype), node
                assert not fake.requires_grad or node.op == "placeholder"
                seen += 1
            return result

    with torch.no_grad():
        Compare(graph_module).run(image(2, 3, 33, 47))
    assert seen > 100


def test_nodes_know_the_module_and_the_line_they_come_from() -> None:
    graph_module = captured(PassCNNAdd(), image(1, 3, 4, 4)).graph_module
    (conv, _) = (node for node in graph_module.graph.nodes if is_call(node, torch.ops.aten.conv2d))
    (add,) = (node for node in graph_module.graph.nodes if is_call(node, torch.ops.aten.add))
    assert module_path(conv) == "conv1"
    assert module_path(add) == ""
    assert re.search(r"models/pass_layer\.py:\d+$", source_line(add) or "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_other_dtypes(dtype: torch.dtype) -> None:
    model = randomize(PassCNNAdd()).to(dtype)
    graph_module = assert_captures(model, image(2, 3, 5, 6).to(dtype))
    assert all(
        node.meta["val"].dtype == dtype for node in graph_module.graph.nodes if is_call(node)
    )


@pytest.mark.parametrize("model", [PassCNNAdd(), PassVariants(3), resnet18("d")])
def test_the_graph_in_float64_is_the_model_in_float64(model: nn.Module) -> None:
    x = image(2, 3, 33, 33)
    graph_module = captured(randomize(model), x).graph_module
    (result,) = run_flat(graph_module, [x])
    with torch.no_grad():
        assert relative_error(result, model.double().eval()(x.double())) <= 1e-12


def test_keyword_inputs_in_any_order() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x * y - z

    x, y, z = (image(2, 3) for _ in range(3))
    found = capture(function(body), (x,), {"z": z, "y": y})
    assert {*found.input_names} == {"x", "y", "z"}
    (result,) = run_flat(found.graph_module, found.flat_inputs, double=False)
    assert torch.equal(result, x * y - z)
    assert torch.equal(found.graph_module(x, y=y, z=z), x * y - z)


def test_inputs_that_are_no_tensors() -> None:
    class Options(nn.Module):
        def forward(
            self, x: Tensor, mask: Tensor | None, count: int, flag: bool, mode: str
        ) -> Tensor:
            assert flag and mode == "up"
            return x * count if mask is None else x * mask

    x = image(2, 3)
    found = captured(Options(), x, None, 4, True, "up")
    assert found.input_names == ("x",)
    assert len(found.placeholders) == len(found.flat_inputs) == 5
    assert torch.equal(found.graph_module(x, None, 4, True, "up"), x * 4)


def test_integer_and_boolean_inputs_and_outputs() -> None:
    def body(x: Tensor, y: Tensor) -> Any:
        return F.embedding(x, torch.eye(4)), ~y, x + 1

    model = function(body)
    assert_captures(model, torch.tensor([[1, 3]]), torch.tensor([True, False]))


def test_an_output_that_is_an_input_a_constant_or_given_twice() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Any:
            y = x + 1
            return x, self.table, y, y

    x = image(2)
    found = captured(Passes(), x)
    assert found.output_names == ("output_0", "output_1", "output_2", "output_3")
    results = found.graph_module(x)
    for result, wanted in zip(results, (x, torch.ones(2), x + 1, x + 1), strict=True):
        assert torch.equal(result, wanted)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CaptureError, match="PassCNN.forward does not take these inputs: too many"):
        captured(PassCNN(), image(1, 3, 4, 4), image(1))
    with pytest.raises(CaptureError, match="missing a required argument: 'x'"):
        captured(PassCNN())


class RefusesTrain(nn.Module):
    """A model whose `train()` must not be run, with a child left in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm2d(4)
        nn.Module.train(self, True)
        self.frozen.training = False

    def train(self, mode: bool = True) -> "RefusesTrain":
        raise AssertionError("capture called train()")

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.body(x))


def state(model: nn.Module) -> list[Tensor]:
    return [item.detach().clone() for item in model.state_dict().values()]


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_a_training_model_is_captured_in_eval_mode_and_left_as_it_was() -> None:
    model = randomize(RefusesTrain())
    before, weights = flags(model), state(model)
    assert before == {"": True, "body": True, "body.0": True, "body.1": True, "body.2": True,
                      "frozen": False}  # fmt: skip
    x = image(2, 3, 4, 4)
    graph_module = captured(model, x).graph_module
    assert flags(model) == before
    assert all(map(torch.equal, weights, state(model)))
    for module in model.modules():
        module.training = False
    assert relative_error(run_flat(graph_module, [x], double=False)[0], model(x)) <= 1e-6


def test_flags_are_restored_after_a_failure() -> None:
    model = RefusesTrain()
    before = flags(model)
    with pytest.raises(CaptureError, match="RefusesTrain itself fails"):
        captured(model, image(2, 5, 4, 4))
    assert flags(model) == before


def test_buffers_are_restored_after_a_failure() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            return x if x.sum() > 0 else x + 1

    model = Counts()
    with pytest.raises(CaptureError, match="Counts cannot be captured"):
        captured(model, image(3))
    assert model.steps == 0
    model(image(3))
    assert model.steps == 1


def test_data_dependent_flow_is_refused_with_its_line() -> None:
    def body(x: Tensor) -> Tensor:
        y = x * 2
        if y.sum() > 0:
            return y
        return x

    line = body.__code__.co_firstlineno + 2
    with pytest.raises(
        CaptureError,
        match=rf"Function cannot be captured at .*test_program.py:{line} \(if y.sum.*torch.where",
    ):
        captured(function(body), image(3))


def test_shapes_that_the_model_itself_refuses() -> None:
    with pytest.raises(
        CaptureError,
        match=r"PassCNN itself fails on inputs of float32 1x4x8x8 at .*pass_layer\.py:\d+ \(",
    ):
        captured(PassCNN(), image(1, 4, 8, 8))


def test_the_line_of_an_installed_library_is_named() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(CaptureError, match=r"ResNet itself fails .* at .*/timm/.*\.py:\d+ \("):
        captured(model, image(1, 4, 32, 32))


def test_a_symbolically_traced_model() -> None:
    model = randomize(PassCNNAdd()).eval()
    graph_module = assert_captures(symbolic_trace(model), image(2, 3, 5, 5))
    assert ops(graph_module) == {"conv2d": 2, "batch_norm": 2, "relu": 1, "add": 1}


def test_an_exported_program_brings_its_inputs() -> None:
    model = randomize(PassCNNAdd()).eval()
    x = image(2, 3, 5, 5)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": BATCH})
    found = capture(program)
    assert torch.equal(found.flat_inputs[0], x)
    assert relative_error(run_flat(found.graph_module, [x])[0], model.double()(x.double())) < 1e-12
    assert_functional(found.graph_module)


def test_an_exported_program_without_example_inputs_needs_them() -> None:
    x = image(2, 3, 5, 5)
    program = torch.export.export(PassCNNAdd().eval(), (x,))
    program.example_inputs = None
    with pytest.raises(CaptureError, match="no example inputs; pass them as args"):
        capture(program)
    assert torch.equal(capture(program, (x,)).flat_inputs[0], x)


def test_a_failed_capture_leaves_no_mark_on_the_inputs() -> None:
    def body(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x + 1

    x = image(2, 3)
    with pytest.raises(CaptureError):
        capture(function(body), (x,), dynamic_shapes={"x": BATCH})
    assert vars(x) == {}
    found = captured(nn.Linear(3, 2), x)
    assert found.placeholders[0].meta["val"].shape == (2, 3)


def test_inputs_are_taken_as_they_are() -> None:
    x = image(3, 2).t().requires_grad_()
    found = captured(function(lambda x, y: x * y), x, x)
    first, second = found.flat_inputs
    assert first.stride() == second.stride() == (1, 2)
    assert first.requires_grad and second.requires_grad and x.grad is None
    assert first.data_ptr() == x.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)
