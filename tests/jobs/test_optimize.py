"""`passfx.optimize`: the model stays as it was, the result is called as it was, and is checked."""

import copy
import dataclasses
import json
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, symbolic_trace

import passfx
from passfx.errors import ExportError, RuntimeUnavailableError, SourceError, VerificationError
from passfx.graph.editor import Editor, Match
from passfx.graph.query import is_call
from passfx.jobs.optimize import Optimized
from passfx.passes.collapse import Collapse
from passfx.verify.error import relative_error
from tests.helpers import ops, randomize

aten = torch.ops.aten


class Block(nn.Module):
    """conv-norm-relu-conv-norm with an identity shortcut, then a projection shortcut."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x) + x)
        return torch.tanh(x) + self.project(x)


class Nested(nn.Module):
    """Reads a dict and a tuple, one of them by keyword, and returns both again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(
        self, items: dict[str, Tensor], *, pair: tuple[Tensor, list[Tensor]], flag: bool = True
    ) -> dict[str, Any]:
        left, (right,) = pair
        total = self.linear(items["a"]) - (2 * items["b"] if flag else items["b"])
        return {"total": total, "parts": (left * 2, [right - left, None])}


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def make_block(channels: int = 4) -> Block:
    torch.manual_seed(0)
    return randomize(Block(channels)).eval()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def block() -> Block:
    return make_block()


@pytest.fixture(scope="module")
def optimized(block: Block, image: Tensor) -> Optimized:
    return passfx.optimize(block, (image,))


def run_file(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    feeds = dict(zip(names, (item.numpy() for item in inputs), strict=True))
    return [torch.from_numpy(np.asarray(item)) for item in session.run(None, feeds)]


# the model is left as it was


def test_model_is_left_exactly_as_it_was(image: Tensor) -> None:
    model = make_block()
    model.train()
    model.body[1].eval()
    model.project.requires_grad_(False)
    calls: list[str] = []
    model.body[0].register_forward_hook(lambda *_: calls.append("forward"))
    model.register_forward_pre_hook(lambda *_: calls.append("pre"))
    flags = {name: module.training for name, module in model.named_modules()}
    state = {name: item.clone() for name, item in model.state_dict().items()}
    addresses = {name: item.data_ptr() for name, item in model.state_dict().items()}
    gradients = {name: item.requires_grad for name, item in model.named_parameters()}
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    given = image.clone()

    passfx.optimize(model, (given,))

    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name for name, training in flags.items() if not training} == {"body.1"}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(item, state[name]) for name, item in model.state_dict().items())
    assert {name: item.data_ptr() for name, item in model.state_dict().items()} == addresses
    assert {name: item.requires_grad for name, item in model.named_parameters()} == gradients
    assert all(item.grad is None for item in model.parameters())
    assert hooks == [
        (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    calls.clear()
    model(given)
    assert calls == ["pre", "forward"]
    assert torch.equal(given, image)


def test_a_model_in_training_mode_is_captured_in_eval_mode(image: Tensor) -> None:
    model = make_block()
    expected = model(image)
    result = passfx.optimize(model.train(), (image,)).module(image)
    assert model.training
    torch.testing.assert_close(result, expected)


def test_a_failure_leaves_the_modes_as_they_were() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = nn.Sequential(Fails(), nn.Dropout())
    model[1].eval()
    with pytest.raises(passfx.CaptureError):
        passfx.optimize(model, (torch.zeros(1),))
    assert [module.training for module in model.modules()] == [True, True, False]


def test_training_the_original_later_does_not_change_folded_weights(image: Tensor) -> None:
    model = make_block()
    optimized = passfx.optimize(model, (image,))
    expected = optimized.module(image)
    with torch.no_grad():
        model.body[0].weight.zero_()
    torch.testing.assert_close(optimized.module(image), expected, rtol=0, atol=0)


# the result


def test_result_equals_the_model(block: Block, optimized: Optimized, image: Tensor) -> None:
    assert isinstance(optimized.module, GraphModule)
    assert ops(optimized.module) == {"conv2d": 3, "relu": 2, "add": 2, "tanh": 1}
    with torch.no_grad():
        torch.testing.assert_close(optimized.module(image), block(image))


def test_shortcuts_of_the_captured_graph(optimized: Optimized, image: Tensor) -> None:
    assert [item.kind for item in optimized.shortcuts] == ["identity", "projection"]
    assert passfx.find_shortcuts(make_block(), (image,)) == optimized.shortcuts
    assert optimized.report.shortcuts == optimized.shortcuts


def test_result_is_an_ordinary_module(optimized: Optimized, image: Tensor) -> None:
    module = copy.copy(optimized).module
    with torch.no_grad():
        expected = module(image)
        for mode in (module.train, module.eval):
            assert mode() is module
            torch.testing.assert_close(module(image), expected, rtol=0, atol=0)
    state = {name: torch.zeros_like(item) for name, item in module.state_dict().items()}
    assert len(state) == 6  # three weights, three biases
    module = optimized_copy(module)
    module.load_state_dict(state)
    assert torch.equal(module(image), image.relu().tanh())  # only the identity shortcut is left
    assert all(item.any() for item in optimized.module.state_dict().values())


def optimized_copy(module: GraphModule) -> GraphModule:
    with warnings.catch_warnings():
        # torch copies the tree specs of a graph module in a way that it has deprecated itself
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        return copy.deepcopy(module)


def test_copy_computes_and_checks_the_same(optimized: Optimized, image: Tensor) -> None:
    module = optimized_copy(optimized_copy(optimized.module))
    torch.testing.assert_close(module(image), optimized.module(image), rtol=0, atol=0)
    assert module.state_dict().keys() == optimized.module.state_dict().keys()
    with pytest.raises(ValueError, match="input x must be"):
        module(image[:1])


def test_optimized_is_frozen(optimized: Optimized) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimized.report = None  # type: ignore[misc, assignment]


# called like the original


def nested_inputs(seed: int = 0) -> tuple[dict[str, Tensor], tuple[Tensor, list[Tensor]]]:
    a, b, c, d = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(seed)).unbind()
    return {"a": a, "b": b}, (c, [d])


def test_nested_inputs_and_outputs() -> None:
    model = Nested()
    items, pair = nested_inputs()
    module = passfx.optimize(model, (items,), {"pair": pair}).module
    items, pair = nested_inputs(1)
    for shuffled in (items, dict(reversed(items.items()))):
        result, expected = module(shuffled, pair=pair), model(items, pair=pair)
        torch.testing.assert_close(result["total"], expected["total"])
        torch.testing.assert_close(result["parts"][0], expected["parts"][0])
        torch.testing.assert_close(result["parts"][1][0], expected["parts"][1][0])
        assert result["parts"][1][1] is None
        assert list(result) == ["total", "parts"]
        assert type(result["parts"]) is tuple
        assert type(result["parts"][1]) is list


def test_names_of_nested_inputs_and_outputs() -> None:
    items, pair = nested_inputs()
    report = passfx.optimize(Nested(), (items,), {"pair": pair}).report
    assert [item.name for item in report.inputs] == ["items_a", "items_b", "pair_0", "pair_1_0"]
    assert [item.name for item in report.outputs] == ["total", "parts_0", "parts_1_0"]


def test_keywords_in_any_order() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor) -> Tensor:
            return x * scale - shift

    x, scale, shift = torch.randn(2, 3), torch.randn(2, 3), torch.randn(3)
    module = passfx.optimize(Keywords(), (x,), {"shift": shift, "scale": scale}).module
    for result in (module(x, scale=scale, shift=shift), module(x, shift=shift, scale=scale)):
        torch.testing.assert_close(result, x * scale - shift)


class Difference(nn.Module):
    def forward(self, x: Tensor, input: Tensor, scale: Tensor) -> Tensor:
        return x - 2 * input + 3 * scale


def test_tensor_given_twice_is_two_inputs() -> None:
    x, y, z = torch.randn(3, 2)
    module = passfx.optimize(Difference(), (x, x, x)).module
    torch.testing.assert_close(module(x, y, z), x - 2 * y + 3 * z)


def test_inputs_captured_by_name_may_be_given_by_place() -> None:
    x, y, z = torch.randn(3, 2)
    module = passfx.optimize(Difference(), (x,), {"scale": z, "input": y}).module
    torch.testing.assert_close(module(x, y, z), x - 2 * y + 3 * z)


def test_inputs_have_the_names_of_the_parameters() -> None:
    x, y, z = torch.randn(3, 2)
    report = passfx.optimize(Difference(), (x, y, z)).report
    assert [item.name for item in report.inputs] == ["x", "input", "scale"]


def test_positional_inputs_may_be_given_by_name(optimized: Optimized, image: Tensor) -> None:
    torch.testing.assert_close(optimized.module(x=image), optimized.module(image), rtol=0, atol=0)
    with pytest.raises(ValueError, match="input x must be"):
        optimized.module(x=image[:1])


def test_named_tuples_keep_their_type() -> None:
    class Swap(nn.Module):
        def forward(self, pair: Pair) -> Pair:
            return Pair(pair.right + 1, pair.left)

    pair = Pair(torch.randn(2), torch.randn(3))
    result = passfx.optimize(Swap(), (pair,)).module(pair)
    assert type(result) is Pair
    assert torch.equal(result.left, pair.right + 1)
    assert torch.equal(result.right, pair.left)


# inputs that the graph is not right for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x[:1],
            r"input x must be torch\.float32 \[2, 4, 6, 7\], not torch\.float32 \[1, 4, 6, 7\]; "
            "sizes that vary are declared with dynamic_shapes",
        ),
        (lambda x: x.double(), r"must be torch\.float32 \[2, 4, 6, 7\], not torch\.float64"),
        (lambda x: x[0], r"not torch\.float32 \[4, 6, 7\]"),
        (lambda x: 3.0, r"input x must be a tensor, not 3\.0"),
        (lambda x: [x, x], "nested in another way than the example inputs were"),
    ],
)
def test_other_inputs_are_refused(
    optimized: Optimized, image: Tensor, change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        optimized.module(change(image))


def test_missing_and_extra_inputs_are_python_errors(optimized: Optimized, image: Tensor) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        optimized.module()
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        optimized.module(image, y=image)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        optimized.module(image, image)


def test_other_nesting_is_refused() -> None:
    class Total(nn.Module):
        def forward(self, items: list[Tensor], named: dict[str, Tensor]) -> Tensor:
            return sum(items, start=torch.zeros(2)) + sum(named.values())

    items, named = [torch.ones(2), torch.ones(2)], {"a": torch.ones(2)}
    module = passfx.optimize(Total(), (items, named)).module
    assert torch.equal(module(items, named), torch.full((2,), 3.0))
    for wrong in (
        ([*items, torch.ones(2)], named),
        (items[:1], named),
        (items, {"b": torch.ones(2)}),
        (items, {**named, "b": torch.ones(2)}),
        (torch.ones(2), named),
    ):
        with pytest.raises(ValueError, match="nested in another way"):
            module(*wrong)


def test_values_that_became_part_of_the_graph_are_refused() -> None:
    class Switch(nn.Module):
        def forward(
            self, x: Tensor, flag: bool, scale: float, mask: Tensor | None = None
        ) -> Tensor:
            return (x if flag else -x) * scale

    x = torch.randn(3)
    module = passfx.optimize(Switch(), (x, True, 2.0), {"mask": None}).module
    torch.testing.assert_close(module(x, True, 2.0, mask=None), 2 * x)
    with pytest.raises(ValueError, match="input flag must be True, with which .* not False"):
        module(x, False, 2.0, mask=None)
    with pytest.raises(ValueError, match=r"input scale must be 2\.0, .* not 3\.0"):
        module(x, True, 3.0, mask=None)
    with pytest.raises(ValueError, match="input mask must be None, .* not a tensor"):
        module(x, True, 2.0, mask=x)


# dynamic sizes


def test_dynamic_sizes_in_pytorch_and_onnxruntime(tmp_path: Path, block: Block) -> None:
    batch = Dim("batch", min=1, max=64)
    shapes = {"x": {0: batch, 2: Dim.DYNAMIC, 3: Dim.AUTO}}
    optimized = passfx.optimize(block, (torch.randn(1, 4, 6, 7),), dynamic_shapes=shapes)
    assert optimized.report.inputs[0].shape == ("batch", 4, "x_2", "x_3")
    assert optimized.report.outputs[0].shape == ("batch", 4, "x_2", "x_3")
    report = optimized.export(tmp_path / "block.onnx")
    assert report.parity is not None and report.parity.samples > 2
    for sizes in ((1, 4, 6, 7), (5, 4, 9, 3), (1, 4, 1, 1), (64, 4, 3, 8)):
        x = torch.randn(sizes)
        with torch.no_grad():
            expected = block(x)
            torch.testing.assert_close(optimized.module(x), expected)
        (result,) = run_file(tmp_path / "block.onnx", x)
        assert relative_error(result, expected) < 1e-5
    with pytest.raises(ValueError, match=r"must be torch\.float32 \[any, 4, any, any\]"):
        optimized.module(torch.randn(1, 3, 6, 7))
    (info,) = onnx.load(tmp_path / "block.onnx").graph.input
    dims = [size.dim_param or size.dim_value for size in info.type.tensor_type.shape.dim]
    assert dims == ["batch", 4, "x_2", "x_3"]


# what may be optimised


def test_symbolically_traced_graph_module(block: Block, image: Tensor) -> None:
    traced = symbolic_trace(block)
    before = str(traced.graph), [id(item) for item in traced.parameters()]
    optimized = passfx.optimize(traced, (image,))
    assert optimized.report.before.ops["batch_norm"] == 2
    assert "batch_norm" not in optimized.report.after.ops
    with torch.no_grad():
        torch.testing.assert_close(optimized.module(image), block(image))
    assert (str(traced.graph), [id(item) for item in traced.parameters()]) == before


def test_exported_program(block: Block, image: Tensor) -> None:
    program = torch.export.export(block, (image,))
    before = str(program.graph)
    optimized = passfx.optimize(program)
    assert "batch_norm" not in optimized.report.after.ops
    assert optimized.report.source == "ExportedProgram"
    with torch.no_grad():
        torch.testing.assert_close(optimized.module(image), block(image))
    assert str(program.graph) == before
    assert passfx.find_shortcuts(program) == passfx.find_shortcuts(block, (image,))


def test_pass_transformer(block: Block, image: Tensor) -> None:
    traced = symbolic_trace(block)
    before = str(traced.graph)
    result = passfx.PassTransformer(traced, (image,)).transform()
    assert isinstance(result, GraphModule)
    assert "batch_norm" not in ops(result)
    with torch.no_grad():
        torch.testing.assert_close(result(image), block(image))
    assert str(traced.graph) == before


# options


def test_skip_and_only(block: Block, image: Tensor) -> None:
    skipped = passfx.optimize(block, (image,), skip=["collapse"]).report
    assert skipped.after.ops["batch_norm"] == 2
    assert "collapse" not in [item.name for item in skipped.passes]
    alone = passfx.optimize(block, (image,), only=["collapse"]).report
    assert [item.name for item in alone.passes] == ["collapse"]
    assert "batch_norm" not in alone.after.ops
    other = passfx.optimize(block, (image,), only=["compose-clips", "share-common"]).report
    assert [item.name for item in other.passes] == ["compose-clips", "share-common"]
    assert other.after == other.before


@pytest.mark.parametrize("options", [{"skip": ["nope"]}, {"only": ["collapse", "nope"]}])
def test_unknown_pass(block: Block, image: Tensor, options: Any) -> None:
    with pytest.raises(SourceError, match="no pass 'nope'; the passes are remove-unused,"):
        passfx.optimize(block, (image,), **options)


def test_unknown_target(block: Block, image: Tensor) -> None:
    with pytest.raises(SourceError, match="target 'tpu' is not one of cpu, cuda"):
        passfx.optimize(block, (image,), target="tpu")


def test_verify_false_proves_nothing(block: Block, image: Tensor) -> None:
    report = passfx.optimize(block, (image,), verify=False).report
    (fold,) = (item for item in report.passes if item.name == "collapse")
    assert report.parity is None
    assert [item.error for item in fold.rewrites] == [None, None]
    proven = passfx.optimize(block, (image,)).report
    (fold,) = (item for item in proven.passes if item.name == "collapse")
    assert all(item.error is not None and item.error < 1e-12 for item in fold.rewrites)
    assert proven.parity is not None and proven.parity.provider == "torch" and proven.parity.passed


def spoil_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make collapse wrong: the norm is left out."""

    def rewrite(self: Collapse, editor: Editor, match: Match) -> Any:
        return editor.call(match.nodes[0].target, *match.nodes[0].args)  # type: ignore[arg-type]

    monkeypatch.setattr(Collapse, "rewrite", rewrite)


def test_wrong_pass_is_undone(block: Block, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_norms(monkeypatch)
    optimized = passfx.optimize(block, (image,))
    assert optimized.report.after.ops["batch_norm"] == 2
    (fold,) = (item for item in optimized.report.passes if item.name == "collapse")
    assert not fold.rewrites
    assert all(item.reason.startswith("undone") for item in fold.refusals)
    with torch.no_grad():
        torch.testing.assert_close(optimized.module(image), block(image))


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


# export


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


# the package


def test_import_is_light() -> None:
    script = (
        "import sys, passfx\n"
        "heavy = {'onnx', 'onnxruntime', 'rich', 'onnxscript', 'timm', 'torchvision', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


def test_public_names_exist() -> None:
    assert [name for name in passfx.__all__ if not hasattr(passfx, name)] == []


def test_optimization_report_is_json(optimized: Optimized) -> None:
    report = json.loads(json.dumps(optimized.report.to_dict()))
    assert report["onnx"] is None
    assert report["opset"] is None
    assert report["source"] == "Block"


def test_ordered_dict_result_keeps_its_keys() -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return OrderedDict(out=x + 1, aux=x - 1)

    x = torch.randn(2)
    result = passfx.optimize(Heads(), (x,)).module(x)
    assert type(result) is OrderedDict
    assert list(result) == ["out", "aux"]
