"""The verifier fires: rewrites that are wrong on purpose are undone, right ones are proven."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from passfx.algebra.channel import ChannelAffine
from passfx.graph.editor import Editor, Match
from passfx.graph.query import arguments, constant, is_call
from passfx.passes import Pass
from passfx.passes.collapse import Collapse
from passfx.passes.remove_noops import RemoveNoops
from passfx.pipeline import Plan, optimize_graph
from tests.helpers import apply, assert_preserves, captured, randomize
from tests.helpers import ops as count
from tests.passes.strategies import Model
from tests.verify.nets import Folded
from tests.verify.wrong import (
    Replace,
    aten,
    fold,
    not_a_number,
    rounded,
    unchanged,
    wrong_eps,
    wrong_order,
    wrong_sign,
)  # fmt: skip


def refused(item: Pass, model: nn.Module, *inputs: Tensor) -> str:
    """The reason for which a pass's only rewrite is undone."""
    program = captured(model, *inputs)
    (graph_module, _), (untouched, _) = (optimize_graph(program, []) for _ in range(2))
    editor = item.run(graph_module)
    editor.finish()
    assert str(graph_module.graph) == str(untouched.graph)
    assert editor.rewrites == []
    (refusal,) = editor.refusals
    return refusal.reason


def proven(item: Pass, model: nn.Module, *inputs: Tensor) -> float:
    """The error that the certificate of a pass's only rewrite measured."""
    _, editor = apply(item, model, *inputs)
    assert editor.refusals == []
    (rewrite,) = editor.rewrites
    assert rewrite.error is not None
    return rewrite.error


def test_the_right_fold_is_proven_to_float64_rounding() -> None:
    assert proven(fold(unchanged), Folded(), torch.randn(2, 4, 8, 8)) <= 1e-14


@pytest.mark.parametrize("change", [wrong_eps, wrong_order, wrong_sign, rounded])
def test_a_wrong_fold_is_undone(change: Callable[..., ChannelAffine]) -> None:
    reason = refused(fold(change), Folded(), torch.randn(2, 4, 8, 8))
    assert reason.startswith("undone: relative error ")
    assert reason.endswith(" on random inputs")


def test_a_fold_that_makes_nan_is_undone() -> None:
    reason = refused(fold(not_a_number), Folded(), torch.randn(2, 4, 8, 8))
    assert reason == "undone: relative error inf on random inputs"


@pytest.mark.parametrize("change", [wrong_eps, wrong_order, not_a_number])
def test_conversion_goes_on_without_the_wrong_rewrite(change: Callable[..., ChannelAffine]) -> None:
    model = Folded().double()
    x = torch.randn(2, 4, 8, 8).double()
    wrong = fold(change)
    graph_module, (first, *others) = optimize_graph(captured(model, x), [wrong, *Plan().passes])
    assert first.rewrites == () and len(first.refusals) == 1 and not first.rolled_back
    assert count(graph_module) == {"conv2d": 1, "relu": 1}
    assert [len(run.rewrites) for run in others if run.name == "collapse"] == [1]
    assert_preserves(graph_module, model, [x], 1e-12)


class AxisScale(nn.Module):
    """A scale per row, not per channel, after a convolution with as many rows as channels."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


def scale_channels(editor: Editor, match: Match) -> Node:
    convolution, product = match.nodes
    bound = arguments(convolution)
    for name in ("weight", "bias"):
        old = constant(bound[name]).double()
        scale = constant(product.args[1]).double().reshape(-1, *[1] * (old.ndim - 1))
        bound[name] = editor.constant(scale * old, torch.float32, name)
    return editor.call(aten.conv2d.default, *bound.values())


def test_a_scale_of_another_axis_is_undone() -> None:
    wrong = Replace((aten.conv2d, aten.mul), scale_channels)
    channels, rows = torch.randn(4, 1, 1), torch.randn(4, 1)
    x = torch.randn(2, 4, 4, 4)
    assert proven(wrong, AxisScale(channels), x) <= 1e-14
    assert refused(wrong, AxisScale(rows), x).startswith("undone: ")


class Prologue(nn.Module):
    """A batch norm before a convolution: its shift folds only where there is no zero padding."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=padding)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


def fold_prologue(editor: Editor, match: Match) -> Node:
    norm, bound = map(arguments, match.nodes)
    names = ("weight", "bias", "running_mean", "running_var")
    before = ChannelAffine.batch_norm(*(constant(norm[name]) for name in names), norm["eps"])
    weight = constant(bound["weight"]).double()
    shift = (weight * before.shift.reshape(1, -1, 1, 1)).sum((1, 2, 3))
    bias = constant(bound["bias"]).double() + shift
    weight = weight * before.scale.reshape(1, -1, 1, 1)
    bound["input"] = norm["input"]
    bound["weight"] = editor.constant(weight, torch.float32, "weight")
    bound["bias"] = editor.constant(bias, torch.float32, "bias")
    return editor.call(aten.conv2d.default, *bound.values())


def test_a_fold_that_is_wrong_at_the_border_is_undone() -> None:
    item = Replace((aten.batch_norm, aten.conv2d), fold_prologue)
    x = torch.randn(2, 4, 64, 64)
    assert proven(item, Prologue(padding=0), x) <= 1e-14
    assert refused(item, Prologue(padding=1), x).startswith("undone: relative error ")


class Two(nn.Module):
    """Two convolutions, all the padding on the first: one 5×5 convolution."""

    def __init__(self, paddings: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=paddings[0], bias=False)
        self.second = nn.Conv2d(3, 2, 3, padding=paddings[1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def compose(editor: Editor, match: Match) -> Node:
    first, second = map(arguments, match.nodes)
    a, b = (constant(bound["weight"]).double() for bound in (first, second))
    weight = functional.conv2d(a.transpose(0, 1), b.flip(2, 3), padding=2).transpose(0, 1)
    exact = editor.constant(weight, torch.float32, "weight")
    padding = first["padding"][0] + second["padding"][0]
    x = first["input"]
    return editor.call(aten.conv2d.default, x, exact, None, [1, 1], [padding, padding])


def test_a_chain_of_convolutions_is_proven_at_sizes_that_it_takes() -> None:
    item = Replace((aten.conv2d, aten.conv2d), compose)
    x = torch.randn(2, 2, 9, 9)
    assert proven(item, Two((0, 0)), x) <= 1e-13
    assert proven(item, Two((2, 0)), x) <= 1e-13
    assert refused(item, Two((1, 1)), x).startswith("undone: relative error ")


class Pointwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + 1


def pool(editor: Editor, match: Match) -> Node:
    return editor.call(aten.max_pool2d.default, match.at.args[0], [2, 2])


def test_a_replacement_of_another_shape_is_undone() -> None:
    reason = refused(Replace((aten.relu,), pool), Pointwise(), torch.randn(2, 4, 8, 8))
    assert reason == (
        "undone: relu is torch.float32 (2, 4, 8, 8), "
        "its replacement max_pool2d is torch.float32 (2, 4, 4, 4)"
    )


def test_a_replacement_that_is_nan_on_half_of_its_inputs_is_undone() -> None:
    def build(editor: Editor, match: Match) -> Node:
        return editor.call(aten.pow.Tensor_Scalar, match.at.args[0], 0.5)

    reason = refused(Replace((aten.relu,), build), Pointwise(), torch.randn(2, 4, 8, 8))
    assert reason == "undone: relative error inf on random inputs"


def test_a_replacement_by_an_earlier_node_is_proven_too() -> None:
    def skip(editor: Editor, match: Match) -> Node:
        return match.at.args[0]

    reason = refused(Replace((aten.relu,), skip), Pointwise(), torch.randn(2, 4, 8, 8))
    assert reason.startswith("undone: relative error ")


def test_a_folded_value_that_overflows_half_precision_is_undone() -> None:
    model = Folded()
    with torch.no_grad():
        model.conv.weight.fill_(60.0)
        model.norm.weight.fill_(4e4)
    x = torch.randn(2, 4, 8, 8)
    reason = refused(Collapse(), model.half(), x.half())
    assert reason == "undone: a folded value overflows torch.float16"
    assert proven(Collapse(), model.float(), x) <= 1e-14


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 2


def test_a_fold_is_proven_on_an_input_without_a_batch() -> None:
    assert proven(Collapse(), Unbatched(), torch.randn(8)) <= 1e-14


class FullMask(nn.Module):
    """A constant as large as the input, first axis included."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) * self.mask


def test_a_rewrite_is_proven_beside_a_constant_that_spans_the_first_axis() -> None:
    assert proven(RemoveNoops(), FullMask(), torch.randn(5, 8)) == 0.0


def test_a_fold_is_proven_on_an_image_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    item = Replace((aten.conv2d, aten.relu), lambda editor, match: clamp_after(editor, match))
    assert proven(item, model, torch.randn(3, 8, 8)) == 0.0


def clamp_after(editor: Editor, match: Match) -> Node:
    inner = editor.call(aten.conv2d.default, *match.nodes[0].args)
    return editor.call(aten.clamp.default, inner, 0.0)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x) * 1.0


def test_a_complex_rewrite_is_proven() -> None:
    assert proven(RemoveNoops(), Spectrum(), torch.randn(2, 8)) == 0.0


class Split(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [1, 2], 1)
        return first + second


def test_a_replacement_with_several_results_is_proven() -> None:
    def again(editor: Editor, match: Match) -> Node:
        return editor.call(match.at.target, *match.at.args)

    def otherwise(editor: Editor, match: Match) -> Node:
        return editor.call(aten.split_with_sizes.default, match.at.args[0], [2, 1], 1)

    x = torch.randn(2, 3)
    assert proven(Replace((aten.split_with_sizes,), again), Split(), x) == 0.0
    assert "inf" in refused(Replace((aten.split_with_sizes,), otherwise), Split(), x)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        column = x[..., -1]
        return (column + column) + (column - column)


def test_the_only_axis_of_a_flat_value_may_be_its_channels() -> None:
    _, editor = apply(Collapse(), Flat(), torch.randn(3, 4))
    assert editor.rewrites
    assert editor.refusals == []


class Rounded(Pass):
    """Takes x·1.41421 for x·√2, to within what it is told."""

    name = "rounded"

    def match(self, node: Node) -> Match | None:
        if not is_call(node, torch.ops.aten.mul):
            return None
        source, number = node.args
        meant = {node: (source, 2**0.5)} if isinstance(number, float) else {}
        if isinstance(number, Node):
            meant = {number: torch.tensor(2.0, dtype=torch.float64).sqrt()}
        return Match(node, (node,), "a product with √2", meant=meant)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        target = torch.ops.aten.div.Tensor
        return editor.call(target, match.at.all_input_nodes[0], 0.5**0.5)


@pytest.mark.parametrize("given", [1.41421356, torch.tensor(2.0).sqrt()])
def test_numbers_that_are_roundings_of_what_is_meant_are_proven_with_that(given: object) -> None:
    _, editor = apply(Rounded(), Model(lambda m, x: x * m.number, number=given), torch.randn(3))
    assert len(editor.rewrites) == 1
    assert editor.rewrites[0].error is not None and editor.rewrites[0].error < 1e-15


@pytest.mark.parametrize("given", [1.41421, torch.tensor(1.41421)])
def test_numbers_that_are_not_are_undone(given: object) -> None:
    model = Model(lambda m, x: x * m.number, number=given)
    graph_module, _ = optimize_graph(captured(model, torch.randn(3)), [])
    editor = Rounded().run(graph_module)
    assert not editor.modified
    (refusal,) = editor.refusals
    assert refusal.reason.endswith("has other numbers than those it is taken for")
