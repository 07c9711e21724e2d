"""`passfx.optimize`: the model stays as it was, the result is called as it was, and is checked."""

import copy
import dataclasses
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, symbolic_trace

import passfx
from passfx.errors import SourceError
from passfx.jobs.optimize import Optimized
from passfx.verify.error import relative_error
from tests.helpers import ops
from tests.jobs.blocks import Block, Nested, make_block, nested_inputs, run_file, spoil_norms


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


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


@dataclasses.dataclass
class Found:
    features: Tensor
    pyramid: Any = None
    stride: int = 1


class Finder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = make_block()

    def forward(self, x: Tensor) -> Any:
        y = self.block(x)
        return Found(y, {"fine": Pair(y[:, :1], x), "coarse": None}, stride=2)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch 2.11 warns of its own copies
def test_a_dataclass_comes_back_and_names_the_outputs(tmp_path: Path, image: Tensor) -> None:
    model = Finder().eval()
    optimized = passfx.optimize(model, (image,))
    wanted = model(image)
    names = ["features", "pyramid_fine_left", "pyramid_fine_right"]
    assert [item.name for item in optimized.report.outputs] == names
    for module in (optimized.module, copy.deepcopy(optimized.module)):
        found = module(image)
        assert type(found) is Found
        assert found.stride == 2
        torch.testing.assert_close(found.features, wanted.features)
        torch.testing.assert_close(found.pyramid["fine"].left, wanted.features[:, :1])
        assert found.pyramid["fine"].right.data_ptr() == image.data_ptr()  # as the model's
        assert found.pyramid["coarse"] is None
    report = optimized.export(tmp_path / "model.onnx")
    assert [item.name for item in report.outputs] == names


def test_named_tuples_keep_their_type() -> None:
    class Swap(nn.Module):
        def forward(self, pair: Pair) -> Pair:
            return Pair(pair.right + 1, pair.left)

    pair = Pair(torch.randn(2), torch.randn(3))
    result = passfx.optimize(Swap(), (pair,)).module(pair)
    assert type(result) is Pair
    assert torch.equal(result.left, pair.right + 1)
    assert torch.equal(result.right, pair.left)


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


def test_wrong_pass_is_undone(block: Block, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_norms(monkeypatch)
    optimized = passfx.optimize(block, (image,))
    assert optimized.report.after.ops["batch_norm"] == 2
    (fold,) = (item for item in optimized.report.passes if item.name == "collapse")
    assert not fold.rewrites
    assert all(item.reason.startswith("undone") for item in fold.refusals)
    with torch.no_grad():
        torch.testing.assert_close(optimized.module(image), block(image))


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


def test_zero_weights_are_said_aloud() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert not passfx.optimize(model, (torch.randn(1, 3, 8, 8),)).report.notes
    nn.init.zeros_(model[1].weight)
    nn.init.uniform_(model[1].bias, 0.5, 1)
    report = passfx.optimize(model, (torch.randn(1, 3, 8, 8),)).report
    layers, parity = report.to_dict()["notes"]
    assert layers == (
        "1 layer has zero weights (1); sizes and speeds below do not hold once it is trained"
    )
    assert parity.startswith("the result is the same for all samples")
    assert report.after.ops["conv2d"] == 1 and report.after.macs == report.before.macs
