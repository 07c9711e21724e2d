"""The optimised module and what it returns share memory with nothing that they should not."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn import functional

import passfx
from tests.helpers import ops
from tests.jobs.blocks import Block, make_block, run_file
from tests.passes.strategies import Model

# ----------------------------------------------------------------------------------- gradients


def test_constants_need_no_gradient() -> None:
    """A fresh norm's mean equals its bias, and share-common stores them once."""
    model, x = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), torch.randn(2, 3, 4, 4)
    optimized = passfx.optimize(model, (x,), skip=["collapse"])
    assert ops(optimized.module) == {"relu": 1, "batch_norm": 1}
    assert len(optimized.module.state_dict()) == 2
    with torch.enable_grad():
        torch.testing.assert_close(optimized.module(x), model.eval()(x))
        optimized.captured.graph_module(x)
        given = x.clone().requires_grad_()
        optimized.module(given).sum().backward()
    assert given.grad is not None and given.grad.any()
    assert not any(item.requires_grad for item in optimized.module.parameters())
    assert all(item.requires_grad and item.grad is None for item in model.parameters())


# ------------------------------------------------------------------------------------- results


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


# What each returns; which of the results shares memory with the input, a constant or another
# result is asked of the model itself.
RESULTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a clone": lambda m, x: x.clone(),
    "a view of a clone": lambda m, x: x.clone().reshape(3, 2),
    "a clone of a view": lambda m, x: (x.t().clone(), x[:, :2].clone()),
    "a slice of a clone": lambda m, x: x.clone()[:, 1:],
    "a clone of what is broadcast": lambda m, x: x.sum(0, keepdim=True).expand(2, 3).clone(),
    "a contiguous transpose": lambda m, x: (y := x.exp(), y.t().contiguous()),
    "a copy to its own dtype": lambda m, x: x.to(torch.float32, copy=True),
    "times one": lambda m, x: x * 1.0,
    "there and back": lambda m, x: (y := x.exp(), y.t().reshape(6).reshape(3, 2).t()),
    "two equal results": lambda m, x: (x + 1, x + 1),
    "three equal results": lambda m, x: (x + 1, (x + 1).view(6), [x + 1]),
    "equal parts": lambda m, x: ((x + 1)[:, :2], (x + 1)[:, :2]),
    "a constant": lambda m, x: (x + 1, m.w * 2),
    "a tensor": lambda m, x: (x + 1, torch.tensor([1.0, 2.0])),
    "a table": lambda m, x: {"y": x.exp(), "table": torch.arange(4.0).view(2, 2)},
    "equal constants": lambda m, x: (m.w, m.same),
    "a named tuple": lambda m, x: Pair(x.clone(), x.clone()),
    # These the model itself returns as they are.
    "the input": lambda m, x: (x, None, x + 1),
    "views of the input": lambda m, x: (x.view(6), x.t(), x[:1]),
    "a reshaped view": lambda m, x: x.view(6).view(3, 2),
    "dropout of the input": lambda m, x: functional.dropout(x, 0.5, m.training),
    "one result twice": lambda m, x: (y := x + 1, y),
    "what was written in place": lambda m, x: ((y := x + 1), y.relu_()),
    "a parameter": lambda m, x: (m.w, x + 1),
    "what is broadcast": lambda m, x: x.sum(0, keepdim=True).expand(2, 3),
}  # fmt: skip


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [item for item in torch.utils._pytree.tree_leaves(module(x)) if item is not None]


def shared(module: nn.Module, x: Tensor) -> set[tuple[Any, ...]]:
    """What shares memory: results with the input, with weights, with each other and themselves."""
    held = [*module.parameters(), *module.buffers()]
    found: set[tuple[Any, ...]] = set()
    seen: list[int] = []
    for place, item in enumerate(results(module, x)):
        storage = item.untyped_storage().data_ptr()
        if storage == x.untyped_storage().data_ptr():
            found.add((place, "input"))
        if storage in [weight.untyped_storage().data_ptr() for weight in held]:
            found.add((place, "weights"))
        found |= {(place, other) for other, earlier in enumerate(seen) if earlier == storage}
        if 0 in item.stride():
            found.add((place, place))
        seen.append(storage)
    return found


def make(name: str) -> Model:
    w = torch.tensor([1.0, 2.0, 3.0])
    return Model(RESULTS[name], w=nn.Parameter(w), same=nn.Parameter(w.clone())).eval()


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_returned_is_fresh_wherever_the_models_was(name: str) -> None:
    model, x = make(name), torch.rand(2, 3)
    module = passfx.optimize(model, (x,)).module
    wanted = [item.clone() for item in results(model, x)]
    for given in (x, torch.rand(3, 2).t(), torch.rand(1, 3).expand(2, 3)):
        with contextlib.suppress(RuntimeError):  # the model has no view of what lies so
            assert shared(module, given) <= shared(model, given), given.stride()
    for item in results(module, x.clone()):
        if not shared(model, x):
            item.add_(5)
    for item, expected in zip(results(copy_of(module), x), wanted, strict=True):
        torch.testing.assert_close(item, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*RESULTS][-8:])
def test_nothing_is_copied_that_the_model_shares(name: str) -> None:
    model, x = make(name), torch.rand(2, 3)
    module = passfx.optimize(model, (x,)).module
    assert shared(module, x) == shared(model, x) != set()
    assert not module._forward_hooks


def copy_of(module: GraphModule) -> GraphModule:
    with warnings.catch_warnings():
        # torch copies the tree specs of a graph module in a way that it has deprecated itself
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        return copy.deepcopy(module)


def test_copies_of_a_module_return_fresh_results() -> None:
    x = torch.rand(2, 3)
    module = copy_of(copy_of(passfx.optimize(make("a clone"), (x,)).module))
    assert shared(module, x) == set()


def test_copies_of_results_are_not_in_the_file(tmp_path: Path) -> None:
    x = torch.rand(2, 3)
    model = Model(lambda m, x: (x.exp() + 1, x.exp() + 1)).eval()
    optimized = passfx.optimize(model, (x,))
    report = optimized.export(tmp_path / "two.onnx")
    assert report.after.ops == {"exp": 1, "add": 1}
    assert report.onnx is not None
    assert report.onnx.ops.keys() <= {"Exp", "Add", "Identity"}
    assert report.onnx.nodes <= 3  # two results of one name are not ONNX
    left, right = run_file(tmp_path / "two.onnx", x)
    assert torch.equal(left, right)


def test_dynamic_sizes() -> None:
    shapes = {"inputs": ({0: torch.export.Dim.DYNAMIC},)}
    model = Model(lambda m, x: (x.clone().reshape(-1), x.view(-1))).eval()
    module = passfx.optimize(model, (torch.rand(2, 3),), dynamic_shapes=shapes).module
    for size in (2, 5):
        x = torch.rand(size, 3)
        assert shared(module, x) == shared(model, x) == {(1, "input")}


def test_a_pass_that_is_called_keeps_results_fresh() -> None:
    from passfx.passes.remove_noops import RemoveNoops
    from passfx.passes.share_common import ShareCommon
    from passfx.pipeline import optimize_graph
    from tests.helpers import captured

    x = torch.rand(2, 3)
    model = Model(lambda m, x: (x.clone(), x + 1, x + 1)).eval()
    graph_module, _ = optimize_graph(captured(model, x), [])
    for kind in (RemoveNoops, ShareCommon, RemoveNoops):
        kind()(graph_module)
    assert ops(graph_module) == {"add": 1}
    assert shared(graph_module, x) == set()
    assert len(graph_module._forward_hooks) == 2


# ------------------------------------------------------------------------------------- weights


class Half(nn.Module):
    """A weight that collapse folds, and a tied one that no pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third.weight = self.second.weight
        nn.init.uniform_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu()).relu()
        out: Tensor = self.third(y)
        return out


def storages(module: nn.Module) -> set[int]:
    held = (*module.parameters(), *module.buffers())
    return {item.untyped_storage().data_ptr() for item in held}


SOURCES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a module": lambda model, x: model,
    "a traced module": lambda model, x: symbolic_trace(model),
    "an exported program": lambda model, x: torch.export.export(model, (x,)),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, Tensor]:
    """A model, a source made of it, and an input."""
    torch.manual_seed(0)
    model, x = Half().eval(), torch.rand(2, 4)
    return model, SOURCES[request.param](model, x), x


def test_the_module_has_weights_of_its_own(source: Any) -> None:
    model, given, x = source
    optimized = passfx.optimize(given, (x,))
    module, wanted = optimized.module, model(x).detach()
    assert not storages(model) & storages(module)
    before = {name: item.clone() for name, item in model.state_dict().items()}

    other = copy_of(module)
    other.half()
    other.double()
    assert {item.dtype for item in model.state_dict().values() if item.is_floating_point()} == {
        torch.float32
    }
    torch.testing.assert_close(module(x), wanted)

    step = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train()(x).sum().backward()
    step.step()
    model.eval()
    assert not torch.allclose(model(x), wanted)
    torch.testing.assert_close(module(x), wanted)
    torch.testing.assert_close(optimized.captured.graph_module(x), wanted)

    model.load_state_dict({name: torch.zeros_like(item) for name, item in before.items()})
    torch.testing.assert_close(module(x), wanted)
    model.load_state_dict(before)
    with torch.no_grad():
        for item in (*module.parameters(), *module.buffers()):
            item.zero_()
    torch.testing.assert_close(model(x), wanted)
    module.to(torch.float64).half()
    torch.testing.assert_close(model(x), wanted)
    assert optimized.captured.graph_module(x).dtype == torch.float32


def test_a_file_is_that_of_the_model_as_it_was(source: Any, tmp_path: Path) -> None:
    model, given, x = source
    optimized, wanted = passfx.optimize(given, (x,)), model(x).detach()
    with torch.no_grad():
        for item in model.parameters():
            item.add_(1)
    optimized.export(tmp_path / "model.onnx")
    (result,) = run_file(tmp_path / "model.onnx", x)
    torch.testing.assert_close(result, wanted)


def test_tied_weights_stay_tied(source: Any) -> None:
    _, given, x = source
    module = passfx.optimize(given, (x,), only=["remove-unused"]).module
    assert (
        len(storages(module)) == 9
    )  # weights and biases of three and a norm, statistics, less one
    assert len(storages(module.half())) == 9


def test_weights_are_shared_where_that_is_wanted(source: Any) -> None:
    model, given, x = source
    module = passfx.optimize(given, (x,), share_weights=True).module
    kept = {model.second.weight, model.second.bias, model.third.bias}
    assert storages(module) & storages(model) == {
        item.untyped_storage().data_ptr() for item in kept
    }
    module.half()
    assert {item.dtype for item in model.parameters()} == {torch.float32}


def test_conversion_copies_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a weight was copied")

    monkeypatch.setattr("passfx.capture.weights.copy.deepcopy", never)
    model, x = Half().eval(), torch.rand(2, 4)
    passfx.convert(model, tmp_path / "model.onnx", (x,))
    assert passfx.find_shortcuts(model, (x,)) == ()
    with pytest.raises(AssertionError, match="a weight was copied"):
        passfx.optimize(model, (x,))


def test_pass_transformer_copies_weights_too() -> None:
    model: Block = make_block()
    traced, x = symbolic_trace(model), torch.rand(2, 4, 6, 7)
    own = passfx.PassTransformer(traced, (x,)).transform()
    assert not storages(own) & storages(model)
    shares = passfx.PassTransformer(traced, (x,), share_weights=True).transform()
    assert storages(shares) & storages(model)
