"""Functional graphs: writes are gone, and what cannot be functional is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models.pass_layer import PassCNN, PassCNNAdd, PassVariants
from models.resnet import resnet18
from passfx.capture.functional import functionalize
from passfx.capture.program import capture
from passfx.errors import CaptureError, quiet
from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_constant
from passfx.graph.text import to_text
from tests.capture.programs import assert_captures, assert_functional, function, image
from tests.helpers import captured, ops, randomize


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
        y = F.relu(x, inplace=True)  # the line to name
        return y + x


def test_an_input_that_an_activation_writes_to_is_left_alone_and_noted() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    found = captured(WritesToItsInput(), x)
    assert torch.equal(x, torch.tensor([[-1.0, 2.0]]))
    for call in (found.graph_module(x), *run_flat(found.graph_module, [x], double=False)):
        assert torch.equal(call, torch.tensor([[0.0, 4.0]]))
    assert torch.equal(x, torch.tensor([[-1.0, 2.0]]))
    assert_functional(found.graph_module)
    (note,) = found.notes
    line = WritesToItsInput.forward.__code__.co_firstlineno + 1
    assert note.startswith("forward() writes to its input 'x' at ") and f".py:{line}; " in note


def residual(x: Tensor) -> Tensor:
    x += x.exp()
    return x.sin()


def normalised(x: Tensor) -> Tensor:
    x.sub_(0.5).div_(0.25)
    x[x < 0] = 0
    return x.sum()


@pytest.mark.parametrize("body", [residual, normalised])
def test_an_input_that_is_made_of_itself_is_no_reason_to_refuse(body: Callable[..., Any]) -> None:
    assert_captures(function(body), image(3))
    assert len(captured(function(body), image(3)).notes) == 1


def test_an_input_that_is_changed_and_returned() -> None:
    def body(x: Tensor) -> Tensor:
        x.add_(1)
        return x

    graph_module = assert_captures(function(body), image(3))
    assert ops(graph_module) == {"add": 1}


def test_a_cache_that_is_returned_is_an_output() -> None:
    def body(cache: Tensor, x: Tensor) -> Any:
        cache[:, 1] = x
        return cache.sum(1), cache

    assert_captures(function(body), image(2, 3), image(2))


def fill_cache(cache: Tensor, x: Tensor) -> Tensor:
    cache[:, 1] = x
    return cache.sum(1)


def copy_over(cache: Tensor, x: Tensor) -> Tensor:
    cache.copy_(x)
    return cache + x


def average(hidden: Tensor, x: Tensor) -> Tensor:
    hidden.mul_(0.9).add_(x, alpha=0.1)
    return hidden.exp()


def count(steps: Tensor, x: Tensor) -> Tensor:
    steps.add_(1)
    return x * steps


def for_the_caller(unread: Tensor, x: Tensor) -> Tensor:
    unread.mul_(2)
    return x + 1


@pytest.mark.parametrize(
    ("body", "first"),
    [
        (fill_cache, image(2, 3)),
        (copy_over, image(2)),
        (average, image(2)),
        (count, torch.tensor(0)),
        (for_the_caller, image(2)),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_an_input_that_keeps_something_for_the_next_call_is_refused(
    body: Callable[..., Any], first: Tensor, exported: bool
) -> None:
    model: Any = function(body)
    if exported:
        model = torch.export.export(model, (first, image(2)))
    with pytest.raises(
        CaptureError, match=r"writes to its input 'x' at .*\.py:\d+, .*; return the new value"
    ):
        capture(model, (first, image(2)))


def test_the_line_of_a_written_cache_is_named() -> None:
    class Cached(nn.Module):
        def forward(self, cache: Tensor, x: Tensor) -> Tensor:
            cache[:, 1] = x  # the line to name
            return cache.sum(1)

    line = Cached.forward.__code__.co_firstlineno + 1
    with pytest.raises(
        CaptureError, match=rf"Cached writes to its input 'cache' at .*test_functional\.py:{line}, "
    ):
        captured(Cached(), image(2, 3), image(2))


def test_a_parameter_that_forward_changes_is_refused_with_its_line() -> None:
    class Adapts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.scale.mul_(0.5)  # the line to name
            return x * self.scale

    line = Adapts.forward.__code__.co_firstlineno + 2
    with pytest.raises(
        CaptureError, match=rf"changes its parameter 'scale' in eval mode at .*\.py:{line}, which"
    ):
        captured(Adapts(), image(3))


def test_a_plain_tensor_that_forward_writes_to_is_refused_with_its_line() -> None:
    class Accumulates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = torch.zeros(3)

        def forward(self, x: Tensor) -> Tensor:
            self.total[:2].add_(1)  # the line to name
            return x * self.total

    model, line = Accumulates(), Accumulates.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"writes to its own 'total' at .*\.py:{line}, which"):
        captured(model, image(3))
    assert torch.equal(model.total, torch.zeros(3))


def test_views_become_reshapes() -> None:
    graph_module = assert_captures(function(lambda x: x.view(6).view(3, 2)), image(2, 3))
    assert ops(graph_module) == {"reshape": 2}


def test_a_view_as_another_dtype_is_no_reshape() -> None:
    graph_module = assert_captures(function(lambda x: x.view(torch.int32) + 1), image(2, 3))
    assert ops(graph_module)["view"] == 1 and "reshape" not in ops(graph_module)


def test_a_batch_norm_is_one_operator() -> None:
    graph_module = assert_captures(randomize(PassVariants()), image(2, 8, 5, 5))
    assert ops(graph_module)["batch_norm"] == 9
    assert not any("getitem" in str(node.target) for node in graph_module.graph.nodes)


def test_a_batch_norm_without_running_statistics_keeps_those_of_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())
    graph_module = assert_captures(model, image(4, 3, 5, 5))
    assert ops(graph_module) == {"batch_norm": 1, "relu": 1}


def test_constants_are_read_by_get_attr_under_their_own_names() -> None:
    model = randomize(PassCNNAdd())
    graph_module = captured(model, image(1, 3, 4, 4)).graph_module
    read = {str(node.target) for node in graph_module.graph.nodes if is_constant(node)}
    named = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert read == {name for name in named if not name.endswith("num_batches_tracked")}
    assert [node.name for node in graph_module.graph.nodes if node.op == "placeholder"] == ["x"]


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


COMPOSITES = [  # operators made of others: torch keeps some, and not those that make views
    lambda x: F.linear(x.flatten(2).movedim(1, 2), torch.ones(4, 3)),
    lambda x: torch.cat([item.relu_() for item in (x * 2).chunk(2, -1)], 1).type_as(x),
    lambda x: torch.einsum("nchw,nkhw->nck", x, F.pad(x, (0, 1))[..., :-1]),
    lambda x: F.scaled_dot_product_attention(x, x, x) + F.max_pool2d(x, 3, 1, 1),
    lambda x: F.instance_norm(F.dropout(x.clamp_max(1), training=False)).unflatten(-1, (2, -1)),
    lambda x: torch.cond(x.sum() > 0, lambda y: F.silu(y).square(), lambda y: F.mish(y), (x,)),
]


@pytest.mark.parametrize("arranged_otherwise", [False, True])
@pytest.mark.parametrize("body", COMPOSITES)
def test_composite_operators_stay_as_torch_keeps_them(
    body: Callable[..., Any], arranged_otherwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet():
        program = torch.export.export(function(body), (image(2, 3, 4, 4),))
        wanted = program.run_decompositions({})
        if arranged_otherwise:  # as a torch to come may be
            monkeypatch.delattr("torch._export.utils._special_op_to_preserve_cia")
        result = functionalize(program, "a function")
    assert to_text(result.graph_module) == to_text(wanted.graph_module)
    assert str(result.graph_signature) == str(wanted.graph_signature)


def test_random_numbers_in_a_branch_are_refused() -> None:
    def body(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + torch.rand(3), lambda x: x * 2, (x,))

    with pytest.raises(CaptureError, match="draws random numbers"):
        captured(function(body), image(3))


def test_a_graph_that_cannot_be_made_functional_is_refused() -> None:
    def body(x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: x + torch.tensor([1.0, 2.0, 3.0]), lambda x: x * 2, (x,)
        )

    with pytest.raises(CaptureError, match="cannot be (made functional|captured)"):
        capture(function(body), (torch.ones(3),))
