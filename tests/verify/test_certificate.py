"""The verifier fires: rewrites that are wrong on purpose are undone, wrong programs are refused."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, ops
from torch.export import Dim
from torch.fx import Node
from torch.nn import functional

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv
from passfx.algebra.geometry import Axis
from passfx.capture.program import Captured
from passfx.graph.editor import Editor, Match
from passfx.graph.evaluate import run_flat
from passfx.graph.query import arguments, constant, is_call
from passfx.passes import Pass
from passfx.passes.collapse import Collapse
from passfx.passes.remove_noops import RemoveNoops
from passfx.pipeline import Plan, optimize_graph
from passfx.verify.error import relative_error
from passfx.verify.parity import draw_samples, parity
from tests.helpers import apply, assert_preserves, captured, randomize
from tests.helpers import ops as count

aten = ops.aten

Build = Callable[[Editor, Match], Node]


class Replace(Pass):
    """Replaces a pair of operators, or one, by whatever `build` makes of it."""

    name = "replace"

    def __init__(self, targets: tuple[Any, ...], build: Build) -> None:
        self.targets = targets
        self.build = build

    def match(self, node: Node) -> Match | None:
        nodes = [node]
        for _ in self.targets[1:]:
            (before,) = [read for read in nodes[0].all_input_nodes if is_call(read)] or [None]
            if before is None:
                return None
            nodes.insert(0, before)
        fits = all(is_call(*pair) for pair in zip(nodes, self.targets, strict=True))
        return Match(node, tuple(nodes), "replaced") if fits else None

    def rewrite(self, editor: Editor, match: Match) -> Node:
        return self.build(editor, match)


def refused(item: Pass, model: nn.Module, *inputs: Tensor) -> str:
    """The reason for which a pass's only rewrite is undone."""
    graph_module, editor = apply(item, model, *inputs)
    untouched, _ = optimize_graph(captured(model, *inputs), [])
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


# Rewrites that are wrong on purpose


class Folded(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=stride)
        self.norm = nn.BatchNorm2d(4)
        randomize(self)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


def fold(change: Callable[[ChannelAffine, dict[str, Any]], ChannelAffine]) -> Replace:
    """The fold of a batch norm into a convolution, with the norm's map changed."""

    def build(editor: Editor, match: Match) -> Node:
        convolution, norm = map(arguments, match.nodes)
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = [constant(norm[name]) for name in names]
        after = change(ChannelAffine.batch_norm(*parameters, norm["eps"]), norm)
        weight, bias = (constant(convolution[name]).double() for name in ("weight", "bias"))
        folded = Conv(weight, bias, (Axis(3, 1, 1, 1),) * 2).scaled(after)
        for name, exact in (("weight", folded.weight), ("bias", folded.bias)):
            dtype = constant(convolution[name]).dtype
            convolution[name] = editor.constant(exact, dtype, name)
        return editor.call(aten.conv2d.default, *convolution.values())

    return Replace((aten.conv2d, aten.batch_norm), build)


def unchanged(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return after


def wrong_eps(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    names = ("weight", "bias", "running_mean", "running_var")
    return ChannelAffine.batch_norm(*(constant(norm[name]) for name in names), 1.1 * norm["eps"])


def wrong_order(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale.roll(1), after.shift)


def wrong_sign(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale, -after.shift)


def rounded(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale.float().double(), after.shift)


def not_a_number(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale * math.nan, after.shift)


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


# Rewrites that are right, and must not be refused


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


# relative_error


@pytest.mark.parametrize(
    ("result", "reference", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0, 0.5], [0.0, 0.0], 0.5),
        ([1.0], [1.0, 1.0], math.inf),
        ([], [], 0.0),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([math.inf, 1.5], [math.inf, 1.0], 0.5),
        ([-math.inf, 1.0], [math.inf, 1.0], math.inf),
        ([1e308, 1.0], [math.inf, 1.0], math.inf),
        ([math.inf, 1.0], [2.0, 1.0], math.inf),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.nan, 1.0], [math.inf, 1.0], math.inf),
        ([math.nan, math.inf], [math.nan, math.inf], 0.0),
        ([-1.7e308, 0.0], [1.7e308, 0.0], math.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True, False], [True, False], 0.0),
        ([1j, 2.0], [1j, 1.0], 1.0),
    ],
)
def test_relative_error(result: list[Any], reference: list[Any], error: float) -> None:
    kind = torch.complex128 if any(isinstance(item, complex) for item in result) else None
    kind = torch.float64 if kind is None and isinstance((result or [0.0])[0], float) else kind
    pair = (torch.tensor(items, dtype=kind) for items in (result, reference))
    assert relative_error(*pair) == error


def test_relative_error_of_several_results_is_the_largest() -> None:
    parts = [torch.ones(2), torch.ones(3)]
    assert relative_error(parts, parts) == 0.0
    assert relative_error([parts[0], parts[1] * 2], parts) == 1.0
    assert relative_error(parts[:1], parts) == math.inf


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


def test_relative_error_widens_before_it_subtracts() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert relative_error(third.half(), third) == pytest.approx(2.4e-4, rel=0.1)
    assert relative_error(third.float(), third) == pytest.approx(3e-8, rel=0.1)


def test_relative_error_leaves_its_operands_alone() -> None:
    result, reference = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
    relative_error(result, reference)
    assert result.tolist() == [1.0, 2.0] and reference.tolist() == [3.0, 4.0]


# parity


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.softmax(self.linear(x), 1)
        return scores, scores.argmax(1)


@pytest.fixture(scope="module")
def classifier() -> Captured:
    torch.manual_seed(0)
    return captured(Classifier(), torch.randn(4, 6), dynamic_shapes={"x": {0: Dim.DYNAMIC}})


def native(program: Captured) -> Callable[[list[Any]], list[Tensor]]:
    return lambda inputs: list(run_flat(program.graph_module, inputs, double=False))


def test_an_equal_program_passes(classifier: Captured) -> None:
    result = parity(classifier, native(classifier), provider="torch")
    assert result.passed and result.provider == "torch" and result.samples >= 3
    assert result.rel_error == result.baseline_rel_error
    assert 0 < result.max_abs_error < 1e-6


@pytest.mark.parametrize("rtol", [0.0, 1e-6, 1e-3])
def test_the_tolerance_is_twice_the_baseline_plus_rtol(classifier: Captured, rtol: float) -> None:
    result = parity(classifier, native(classifier), provider="torch", rtol=rtol)
    assert 0 < result.baseline_rel_error < 1e-6
    assert result.tolerance == 2 * result.baseline_rel_error + rtol


def test_a_program_that_is_off_by_one_in_ten_thousand_fails(classifier: Captured) -> None:
    def candidate(inputs: list[Any]) -> list[Tensor]:
        scores, labels = native(classifier)(inputs)
        return [scores * (1 + 1e-4), labels]

    result = parity(classifier, candidate, provider="torch")
    assert not result.passed and result.rel_error == pytest.approx(1e-4, rel=0.01)
    assert parity(classifier, candidate, provider="torch", rtol=2e-4).passed


@pytest.mark.parametrize(("factor", "passed"), [(1 + 9e-7, True), (1 + 11e-7, False)])
def test_a_float64_model_leaves_rtol_alone(factor: float, passed: bool) -> None:
    program = captured(nn.Linear(3, 3).double(), torch.randn(2, 3).double())

    def candidate(inputs: list[Any]) -> list[Tensor]:
        return [result * factor for result in native(program)(inputs)]

    result = parity(program, candidate, provider="torch", rtol=1e-6)
    assert (result.baseline_rel_error, result.tolerance) == (0.0, 1e-6)
    assert result.passed is passed


class Cancelling(nn.Module):
    """One output that float32 gets wrong by itself, beside one that it gets right."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + 1e4) - 1e4, torch.sigmoid(x)


def test_the_rounding_of_one_output_does_not_excuse_another() -> None:
    program = captured(Cancelling(), torch.randn(4, 6))

    def candidate(inputs: list[Any]) -> list[Tensor]:
        rough, fine = native(program)(inputs)
        return [rough, fine * (1 + 1e-4)]

    assert parity(program, native(program), provider="torch").passed
    result = parity(program, candidate, provider="torch")
    assert not result.passed and result.rel_error == pytest.approx(1e-4, rel=0.01)
    assert result.baseline_rel_error < 1e-6


class Overflowing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 60000) * 60000 / 60000


def test_a_model_that_overflows_by_itself_excuses_nothing() -> None:
    program = captured(Overflowing(), torch.rand(4, 6).half() + 0.5)

    def candidate(inputs: list[Any]) -> list[Tensor]:
        return [inputs[0].double() * 1.5]

    result = parity(program, candidate, provider="torch")
    assert result.baseline_rel_error == math.inf
    assert result.tolerance == 1e-6 and not result.passed


def swap_one_label(scores: Tensor, labels: Tensor) -> list[Tensor]:
    return [scores, torch.cat([(labels[:1] + 1) % 5, labels[1:]])]


def lose_a_row(scores: Tensor, labels: Tensor) -> list[Tensor]:
    return [scores[1:], labels]


def make_nan(scores: Tensor, labels: Tensor) -> list[Tensor]:
    return [torch.where(scores == scores.max(), math.nan, scores), labels]


@pytest.mark.parametrize("spoil", [swap_one_label, lose_a_row, make_nan])
def test_one_wrong_element_fails(classifier: Captured, spoil: Callable[..., list[Tensor]]) -> None:
    def candidate(inputs: list[Any]) -> list[Tensor]:
        return spoil(*native(classifier)(inputs))

    result = parity(classifier, candidate, provider="torch")
    assert not result.passed
    assert result.rel_error >= 1 / 8 and result.max_abs_error >= 1


def test_a_program_that_is_wrong_at_other_sizes_alone_fails(classifier: Captured) -> None:
    def candidate(inputs: list[Any]) -> list[Tensor]:
        scores, labels = native(classifier)(inputs)
        return [scores if len(scores) == 4 else scores * 1.01, labels]

    assert not parity(classifier, candidate, provider="torch").passed


def test_a_program_that_is_wrong_on_other_values_alone_fails() -> None:
    program = captured(nn.Linear(6, 5), torch.randn(4, 6))
    example = program.flat_inputs[0]

    def candidate(inputs: list[Any]) -> list[Tensor]:
        (result,) = native(program)(inputs)
        return [result if torch.equal(inputs[0], example) else result * 1.01]

    assert not parity(program, candidate, provider="torch").passed


class Pairs(nn.Module):
    """Takes an even number of rows only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, 2, 3).sum(1)


def test_sizes_that_the_model_does_not_take_are_left_out_and_others_are_found() -> None:
    program = captured(Pairs(), torch.randn(6, 3), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    seen = set()

    def candidate(inputs: list[Any]) -> list[Tensor]:
        seen.add(len(inputs[0]))
        return native(program)(inputs)

    assert parity(program, candidate, provider="torch").passed
    assert len(seen) > 1 and all(size % 2 == 0 for size in seen)


class Rows(nn.Module):
    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return x[at]


def test_a_smaller_table_than_the_indices_need_is_left_out() -> None:
    program = captured(
        Rows(),
        torch.randn(6, 3),
        torch.tensor([5, 5]),
        dynamic_shapes={"x": {0: Dim("rows", max=6)}, "at": None},
    )
    assert parity(program, native(program), provider="torch").passed


def test_a_model_that_fails_on_its_example_is_an_error(classifier: Captured) -> None:
    broken = dataclasses.replace(classifier, args=(torch.randn(4, 7),))
    with pytest.raises(RuntimeError):
        parity(broken, native(classifier), provider="torch")


# draw_samples


class Mixed(nn.Module):
    def forward(self, x: Tensor, ids: Tensor, mask: Tensor, scale: float, flag: bool) -> Tensor:
        return (x[ids] * mask * scale) if flag else x


IDS = torch.tensor([3, 5, 5, 9])


@pytest.fixture(scope="module")
def mixed() -> Captured:
    torch.manual_seed(0)
    inputs = (torch.rand(12, 4) + 7, IDS, torch.tensor([True, False, True, True]), 2.5, True)
    return captured(Mixed(), *inputs)


def test_the_first_sample_is_the_example(mixed: Captured) -> None:
    first, second = draw_samples(mixed, 0)
    assert all(a is b for a, b in zip(first, mixed.flat_inputs, strict=True))
    assert not torch.equal(second[0], first[0])


def test_samples_depend_on_the_seed_alone(mixed: Captured) -> None:
    def drawn(seed: int) -> list[Tensor]:
        torch.rand(3)  # the global generator plays no part
        return [given for sample in draw_samples(mixed, seed) for given in sample[:3]]

    assert all(map(torch.equal, drawn(3), drawn(3)))
    assert not all(map(torch.equal, drawn(3), drawn(4)))


def test_samples_stay_in_the_domain_of_the_example(mixed: Captured) -> None:
    for sample in draw_samples(mixed, 1):
        x, ids, mask, *numbers = sample
        assert x.dtype == torch.float32 and bool(((x >= 7) & (x < 8)).all())
        assert ids.dtype == torch.int64 and set(ids.tolist()) <= {3, 5, 9}
        assert mask.dtype == torch.bool
        assert numbers == [2.5, True]


def test_an_example_of_one_value_is_replaced_by_noise() -> None:
    program = captured(nn.ReLU(), torch.zeros(4, 5))
    _, (noise,) = draw_samples(program, 0)
    assert noise.std() > 0.5


def sizes(program: Captured) -> list[list[tuple[int, ...]]]:
    return [[tuple(given.shape) for given in sample] for sample in draw_samples(program, 0)]


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y.sum()


def test_dynamic_sizes_vary_and_fixed_ones_stay() -> None:
    shapes = {"x": {0: Dim.DYNAMIC}, "y": {1: Dim.DYNAMIC}}
    program = captured(Add(), torch.randn(4, 3), torch.randn(2, 8), dynamic_shapes=shapes)
    drawn = sizes(program)
    assert len({x[0] for x, _ in drawn}) >= 3 and len({y[1] for _, y in drawn}) >= 3
    assert {x[1] for x, _ in drawn} == {3} and {y[0] for _, y in drawn} == {2}


@pytest.mark.parametrize("example", [2, 4, 5])
def test_dynamic_sizes_vary_within_the_declared_range(example: int) -> None:
    rows = Dim("rows", min=2, max=5)
    program = captured(nn.ReLU(), torch.randn(example, 3), dynamic_shapes={"input": {0: rows}})
    drawn = {x[0] for (x,) in sizes(program)}
    assert len(drawn) > 1 and min(drawn) >= 2 and max(drawn) <= 5


def test_shared_and_derived_sizes_stay_consistent() -> None:
    rows = Dim("rows", min=2, max=40)
    shapes = {"x": {0: rows, 1: rows}, "y": {0: 2 * rows + 1}}
    program = captured(Add(), torch.randn(4, 4), torch.randn(9, 3), dynamic_shapes=shapes)
    drawn = sizes(program)
    assert len({x for x, _ in drawn}) >= 3
    assert all(x[0] == x[1] and y[0] == 2 * x[0] + 1 for x, y in drawn)


def test_static_models_are_sampled_at_their_size_alone() -> None:
    program = captured(Add(), torch.randn(4, 3), torch.randn(2, 8))
    assert sizes(program) == [[(4, 3), (2, 8)]] * 2


# CUDA


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_rewritten_and_compared() -> None:
    model = Folded().cuda()
    program = captured(model, torch.randn(2, 4, 8, 8, device="cuda"))
    graph_module, _ = optimize_graph(program, Plan().passes)
    assert count(graph_module) == {"conv2d": 1, "relu": 1}

    def candidate(inputs: list[Any]) -> list[Tensor]:
        return [result.cpu() for result in run_flat(graph_module, inputs, double=False)]

    assert parity(program, candidate, provider="torch", rtol=1e-3).passed
