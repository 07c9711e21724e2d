"""Capture: what it keeps, what it makes functional, what it refuses and in which words."""

import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, symbolic_trace
from torch.nn import functional as F

from models.pass_layer import PassCNN, PassCNNAdd, PassVariants
from models.resnet import resnet18
from passfx.capture.program import capture
from passfx.errors import CaptureError
from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_call, is_constant, module_path, source_line
from passfx.verify.error import relative_error
from tests.helpers import captured, ops, randomize

BATCH = {0: Dim.DYNAMIC}


class Function(nn.Module):
    """A module without parameters around a function of at most three inputs."""

    def __init__(self, function: Callable[..., Any], inputs: int) -> None:
        super().__init__()
        self.function = function
        self.inputs = inputs

    def forward(self, x: Any, y: Any = None, z: Any = None) -> Any:
        return self.function(*(x, y, z)[: self.inputs])


def function(body: Callable[..., Any]) -> Function:
    return Function(body, body.__code__.co_argcount)


def image(*shape: int) -> Tensor:
    return torch.randn(shape)


def assert_captures(model: nn.Module, *args: Any, tolerance: float = 1e-6) -> GraphModule:
    """The graph gives what the model gives, on copies because either may write to its inputs."""
    graph_module = captured(model, *(item.clone() for item in args)).graph_module
    with torch.no_grad():
        wanted = model.eval()(*(item.clone() for item in args))
    results = run_flat(graph_module, [item.clone() for item in args], double=False)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == expected.dtype
        assert relative_error(result, expected) <= tolerance
    assert_functional(graph_module)
    return graph_module


def assert_functional(graph_module: GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if is_call(node):
            assert not node.target._schema.is_mutable, node.format_node()
        assert node.op in ("placeholder", "get_attr", "call_function", "output")


# Functional graphs.


class ReadsAfterInplace(nn.Module):
    """`relu_` and `add_` change a value that the shortcut still reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.conv(x)
        out = skip.relu_()
        out = self.conv(out)
        out += skip  # the rectified one
        return out.add_(1).mul_(skip)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.clone().relu_().add_(x),
        lambda x: F.relu(x * 2, inplace=True).clamp_(max=1) + x,
    ],
)
def test_inplace_functions_become_functional(body: Callable[..., Any]) -> None:
    assert_captures(function(body), image(2, 3))


def test_inplace_operators_on_values_that_a_shortcut_reads() -> None:
    assert_captures(ReadsAfterInplace(), image(1, 3, 5, 6))


def write_through_slice(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].add_(1)
    return y


def write_through_view(x: Tensor) -> Tensor:
    y = x.clone()
    y.view(-1)[2:4].mul_(3)
    y.t().relu_()
    return y


def fill_halves(x: Tensor) -> Tensor:
    y = torch.zeros(2, 6)
    y[:, :3] = x
    y[:, 3:].copy_(x * 2)
    return y


def write_to_chunk(x: Tensor) -> Tensor:
    y = x.exp()
    first, _ = y.chunk(2)
    first.add_(1)
    return y


@pytest.mark.parametrize(
    "body", [write_through_slice, write_through_view, fill_halves, write_to_chunk]
)
def test_writes_through_views_are_kept_and_not_reported_dead(body: Callable[..., Any]) -> None:
    assert_captures(function(body), image(2, 3))
    assert captured(function(body), image(2, 3)).dead_code.rewrites == ()


class WritesToItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x, inplace=True)
        return y + x


def test_an_input_that_the_model_writes_to_is_left_alone() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    found = captured(WritesToItsInput(), x)
    assert torch.equal(x, torch.tensor([[-1.0, 2.0]]))
    for call in (found.graph_module(x), *run_flat(found.graph_module, [x], double=False)):
        assert torch.equal(call, torch.tensor([[0.0, 4.0]]))
    assert torch.equal(x, torch.tensor([[-1.0, 2.0]]))
    assert_functional(found.graph_module)


def test_an_input_that_is_changed_and_returned() -> None:
    def body(x: Tensor) -> Tensor:
        x.add_(1)
        return x

    graph_module = assert_captures(function(body), image(3))
    assert ops(graph_module) == {"add": 1}


def test_views_become_reshapes() -> None:
    graph_module = assert_captures(function(lambda x: x.view(6).view(3, 2)), image(2, 3))
    assert ops(graph_module) == {"reshape": 2}


def test_a_view_as_another_dtype_is_no_reshape() -> None:
    graph_module = assert_captures(function(lambda x: x.view(torch.int32) + 1), image(2, 3))
    assert ops(graph_module)["view"] == 1 and "reshape" not in ops(graph_module)


# What a graph carries.


def test_constants_are_read_by_get_attr_under_their_own_names() -> None:
    model = randomize(PassCNNAdd())
    graph_module = captured(model, image(1, 3, 4, 4)).graph_module
    read = {str(node.target) for node in graph_module.graph.nodes if is_constant(node)}
    named = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert read == {name for name in named if not name.endswith("num_batches_tracked")}
    assert [node.name for node in graph_module.graph.nodes if node.op == "placeholder"] == ["x"]


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


def test_a_batch_norm_is_one_operator() -> None:
    graph_module = assert_captures(randomize(PassVariants()), image(2, 8, 5, 5))
    assert ops(graph_module)["batch_norm"] == 9
    assert not any("getitem" in str(node.target) for node in graph_module.graph.nodes)


def test_a_batch_norm_without_running_statistics_keeps_those_of_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())
    graph_module = assert_captures(model, image(4, 3, 5, 5))
    assert ops(graph_module) == {"batch_norm": 1, "relu": 1}


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


# Inputs and outputs.


def test_nested_inputs_and_outputs() -> None:
    def body(x: dict[str, Any], y: tuple[Tensor, Tensor]) -> Any:
        return {"sum": x["a"] + y[0], "more": (x["b"][0] * y[1], None, [x["a"]])}

    a, b, c, d = (image(2, 3) for _ in range(4))
    found = captured(function(body), {"a": a, "b": [b]}, (c, d))
    assert found.input_names == ("x_a", "x_b_0", "y_0", "y_1")
    assert found.output_names == ("sum", "more_0", "more_2_0")
    assert [type(item) for item in found.results].count(type(None)) == 1
    result = found.graph_module({"a": a, "b": [b]}, (c, d))
    assert torch.equal(result["sum"], a + c)
    assert torch.equal(result["more"][0], b * d)
    assert result["more"][1] is None
    assert torch.equal(result["more"][2][0], a)


def test_a_tuple_of_results_is_numbered() -> None:
    found = captured(function(lambda x: (x + 1, None, x * 2)), image(2))
    assert found.output_names == ("output_0", "output_2")


Pair = namedtuple("Pair", "first second")


def test_a_named_tuple_names_its_results() -> None:
    found = captured(function(lambda x: Pair(x + 1, x * 2)), image(2))
    assert found.output_names == ("first", "second")


def test_names_are_unique_across_inputs_and_outputs() -> None:
    class Echo(nn.Module):
        def forward(self, output: Tensor, a: Tensor) -> Any:
            return {"output": output + 1, "a": a, "b": {"c": a + 1}, "b_c": a + 2}

    found = captured(Echo(), image(2), image(2))
    assert found.input_names == ("output", "a")
    assert found.output_names == ("output_1", "a_1", "b_c", "b_c_1")


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


# Dynamic sizes.


def test_a_dynamic_batch_from_an_example_of_one() -> None:
    model = randomize(PassCNNAdd())
    x = image(1, 3, 4, 4)
    found = capture(model, (x,), dynamic_shapes={"x": BATCH})
    assert x.shape[0] == 1
    assert found.flat_inputs[0].shape[0] == 2
    assert list(found.dim_names.values()) == ["batch"]
    assert [found.dim_name(str(n)) for n in found.results[0].meta["val"].shape] == [
        "batch", "64", "4", "4",
    ]  # fmt: skip
    for batch in (1, 2, 5):
        y = image(batch, 3, 4, 4)
        (result,) = run_flat(found.graph_module, [y], double=False)
        assert relative_error(result, model.eval()(y)) <= 1e-6


def test_dynamic_spatial_sizes_are_named_after_input_and_axis() -> None:
    model = randomize(resnet18())
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.AUTO},)
    found = capture(model, (image(1, 3, 64, 96),), dynamic_shapes=shapes)
    assert set(found.dim_names.values()) == {"batch", "x_2", "x_3"}
    y = image(3, 3, 33, 70)
    (result,) = run_flat(found.graph_module, [y], double=False)
    with torch.no_grad():
        assert relative_error(result, model.eval()(y)) <= 1e-5


def test_dims_keep_their_names_and_their_ranges() -> None:
    rows = Dim("rows", min=2, max=7)
    found = capture(
        function(lambda x, y: torch.cat([x, y], 1) * 2),
        (image(1, 3), image(1, 4)),
        dynamic_shapes={"x": {0: rows, 1: Dim("left", max=64)}, "y": {0: rows}},
    )
    assert set(found.dim_names.values()) == {"rows", "left"}
    (fake,) = (item.meta["val"] for item in found.results)
    assert [found.dim_name(str(size)) for size in fake.shape] == ["rows", "left + 4"]
    bounds = {(int(item.lower), int(item.upper)) for item in _ranges(found)}
    assert bounds == {(2, 7), (2, 64)} or bounds == {(2, 7), (0, 64)}


def _ranges(found: Any) -> list[Any]:
    return list(found.program.range_constraints.values())


def test_two_unnamed_batches_have_two_names() -> None:
    shapes = {"x": BATCH, "y": BATCH}
    found = capture(
        function(lambda x, y: (x + 1, y + 1)), (image(1, 3), image(4, 3)), dynamic_shapes=shapes
    )
    assert set(found.dim_names.values()) == {"batch", "y_batch"}


def test_dims_of_nested_inputs() -> None:
    def body(x: Any) -> Tensor:
        return x["a"] + x["b"][0] * x["b"][1]

    def inputs(batch: int) -> Any:
        return OrderedDict(a=image(batch, 3), b=(image(batch, 3), image(batch, 3)))

    shapes = {"x": {"a": BATCH, "b": (BATCH, BATCH)}}
    found = capture(function(body), (inputs(1),), dynamic_shapes=shapes)
    assert isinstance(found.args[0], OrderedDict)
    assert set(found.dim_names.values()) == {"batch"}
    given = inputs(4)
    assert torch.equal(found.graph_module(given), body(given))


def test_dims_of_a_named_tuple() -> None:
    found = capture(
        function(lambda x: x.first + x.second),
        (Pair(image(1, 3), image(1, 3)),),
        dynamic_shapes={"x": Pair(BATCH, BATCH)},
    )
    assert found.graph_module(Pair(image(4, 3), image(4, 3))).shape == (4, 3)


def test_dims_leave_keyword_inputs_keywords() -> None:
    def body(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x * y - z

    x, y, z = (image(5, 3) for _ in range(3))
    found = capture(
        function(body),
        (x[:1],),
        {"z": z[:1], "y": y[:1]},
        dynamic_shapes={"x": BATCH, "y": BATCH, "z": BATCH},
    )
    assert torch.equal(found.graph_module(x, y=y, z=z), x * y - z)
    assert list(found.kwargs) == ["y", "z"]  # in the order of forward, whatever the caller's


def test_a_shapes_collection() -> None:
    x = image(1, 3)
    shapes = torch.export.ShapesCollection()
    shapes[x] = BATCH
    found = capture(function(lambda x: x + 1), (x,), dynamic_shapes=shapes)
    assert found.graph_module(image(4, 3)).shape == (4, 3)
    assert list(found.dim_names.values()) == ["batch"]


def test_dims_that_do_not_fit_the_inputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="cannot be captured.*dynamic_shapes"):
        capture(
            function(lambda x: x[0] + x[1]),
            ([image(1, 3), image(1, 3)],),
            dynamic_shapes={"x": [BATCH]},
        )


# The model stays as it was.


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


# Refusals.


def test_a_buffer_that_eval_mode_changes_is_refused_by_name() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.inner.steps += 1
            return x + self.inner.steps

    model = Counts()
    with pytest.raises(CaptureError, match="Counts changes its buffer 'inner.steps' in eval mode"):
        captured(model, image(3))
    assert model.inner.steps == 0


def test_random_operators_are_refused_with_their_line() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn_like(x)  # the line to name
            return x + noise

    line = Noisy.forward.__code__.co_firstlineno + 1
    with pytest.raises(
        CaptureError, match=rf"Noisy draws random numbers in eval mode \(randn_like at .*:{line}\)"
    ):
        captured(Noisy(), image(3))


def test_functional_dropout_left_on_is_refused() -> None:
    with pytest.raises(CaptureError, match="draws random numbers in eval mode"):
        captured(function(lambda x: F.dropout(x, 0.5)), image(3))


def test_random_operators_that_reach_no_output_are_no_reason_to_refuse() -> None:
    def body(x: Tensor) -> Tensor:
        torch.rand(3)
        return x + 1

    assert ops(assert_captures(function(body), image(3))) == {"add": 1}


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


# Other kinds of model.


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


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(3), r"changes its buffer 'running_mean'"),
        (nn.Dropout(0.5), r"draws random numbers .*call eval\(\) before exporting"),
    ],
)
def test_an_exported_program_in_training_mode_is_refused(layer: nn.Module, reason: str) -> None:
    program = torch.export.export(layer.train(), (image(2, 3, 4, 4),))
    with pytest.raises(CaptureError, match=reason):
        capture(program)


# Dead code.


def test_a_branch_that_reaches_no_output_is_reported_once() -> None:
    found = captured(PassCNN(), image(1, 3, 4, 4))
    (branch,) = found.dead_code.rewrites
    assert branch.what == "3 operators reach no output"
    assert len(branch.removed) == 3
    assert [name.split("_")[0] for name in branch.removed] == ["conv2d", "batch", "relu"]
    assert branch.module == "relu"
    assert ops(found.graph_module) == {"conv2d": 1, "batch_norm": 1}


def test_two_dead_branches_are_two() -> None:
    def body(x: Tensor) -> Tensor:
        x.exp().sin()
        x.cos().relu_()
        return x + 1

    branches = captured(function(body), image(3)).dead_code.rewrites
    assert sorted(len(branch.removed) for branch in branches) == [2, 2]


@pytest.mark.parametrize(
    "model", [PassCNNAdd(), PassVariants(3), resnet18("preact"), ReadsAfterInplace()]
)
def test_live_code_is_not_reported_dead(model: nn.Module) -> None:
    assert captured(model, image(1, 3, 32, 32)).dead_code.rewrites == ()


def test_live_code_with_dynamic_sizes_is_not_reported_dead() -> None:
    def body(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = x.to(torch.float64).reshape(batch, channels, height * width).transpose(1, 2)
        return y.reshape(batch * height, width, channels).sum(0)

    shapes = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}}
    found = capture(function(body), (image(1, 3, 4, 5),), dynamic_shapes=shapes)
    assert found.dead_code.rewrites == ()


def test_a_graph_that_cannot_be_made_functional_is_refused() -> None:
    def body(x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: x + torch.tensor([1.0, 2.0, 3.0]), lambda x: x * 2, (x,)
        )

    with pytest.raises(CaptureError, match="cannot be (made functional|captured)"):
        capture(function(body), (torch.ones(3),))
