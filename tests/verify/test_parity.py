"""Whole programs: wrong ones are refused, right ones pass, at other sizes and values too."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from passfx.capture.program import Captured
from passfx.errors import VerificationError
from passfx.graph.evaluate import run_flat
from passfx.pipeline import Plan, optimize_graph
from passfx.verify.parity import draw_samples, parity
from tests.helpers import captured, draws
from tests.helpers import ops as count
from tests.verify.nets import Folded


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
    assert result.baseline_rel_error < 1e-15 and result.tolerance == pytest.approx(1e-6, rel=1e-9)
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


def test_nan_where_the_model_has_none_is_said(classifier: Captured) -> None:
    def candidate(inputs: list[Any]) -> list[Tensor]:
        return make_nan(*native(classifier)(inputs))

    with pytest.raises(VerificationError, match=r"output_0 has .* is NaN or infinite where the mo"):
        parity(classifier, candidate, provider="torch").checked()


class Gains(nn.Module):
    """Channels on axis 1 or on the last, one of them 10 million times smaller than the others."""

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.axis = axis
        gains = torch.ones(6)
        gains[2] = 1e-7
        self.register_buffer(
            "gains", gains.view(*(-1 if at == axis else 1 for at in range(len(shape))))
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x.movedim(self.axis, -1)).movedim(-1, self.axis)
        return mixed * self.gains


@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), 0), ((2, 6), 1), ((2, 6, 5, 4), 1), ((2, 5, 6), 2), ((2, 6, 3), 1)]
)
def test_a_flipped_sign_in_a_small_channel_fails(shape: tuple[int, ...], axis: int) -> None:
    torch.manual_seed(0)
    program = captured(Gains(shape, axis), torch.randn(shape))

    def candidate(inputs: list[Any]) -> list[Tensor]:
        (result,) = native(program)(inputs)
        result.select(axis, 2).neg_()
        return [result]

    assert parity(program, native(program), provider="torch").passed
    result = parity(program, candidate, provider="torch")
    assert result.max_abs_error < 1e-6
    assert (result.passed, result.channel) == (False, f"channel 2 of axis {axis}")
    assert result.rel_error == pytest.approx(2) and result.tolerance < 0.01
    message = rf"relative error of channel 2 of axis {axis} of output is 2\.0.*tolerated.*--rtol"
    with pytest.raises(VerificationError, match=message):
        result.checked()


class Reordered(nn.Module):
    """Two ways to compute the same scores, which round apart; some lie near zero by chance."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 400)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.first(x))))

    def otherwise(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.relu(self.first.weight.flip(1) @ x.flip(1).T + self.first.bias[:, None])
            return self.last((self.second.weight.flip(1) @ hidden.flip(0)).T + self.second.bias)


LASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "scores": lambda x: x,
    "probabilities": lambda x: torch.softmax(20 * x, 1),
    "cancelled": lambda x: (x + 300.0) - 300.0,
    "one cancelled": lambda x: torch.cat([x[:, :1] + 300.0 - 300.0, x[:, 1:]], 1),
    "nearly dead": lambda x: torch.relu(x - 0.55),
    "tails": lambda x: functional.gelu(x * 0.1 - 5),
}


@pytest.mark.parametrize("name", LASTS)
def test_a_program_that_rounds_in_another_way_passes(name: str) -> None:
    torch.manual_seed(0)
    model = Reordered(LASTS[name])
    program = captured(model, torch.randn(1, 64))
    for seed in range(draws(15)):
        result = parity(
            program, lambda inputs: [model.otherwise(*inputs)], provider="torch", seed=seed
        )
        assert result.passed, result


def test_the_noise_of_one_channel_does_not_excuse_another() -> None:
    torch.manual_seed(0)
    model = Reordered(LASTS["one cancelled"])
    program = captured(model, torch.randn(1, 64))

    def candidate(inputs: list[Any]) -> list[Tensor]:
        result = model.otherwise(*inputs)
        at = int(result[:, 1:].abs().argmin()) + 1
        return [torch.cat([result[:, :at], result[:, at:] * 1.01], 1)[:, :400]]

    assert not parity(program, candidate, provider="torch").passed


def test_the_same_model_elsewhere_excuses_what_the_runtime_approximates(
    classifier: Captured,
) -> None:
    made = []

    def rough(inputs: list[Any]) -> list[Tensor]:
        scores, labels = native(classifier)(inputs)
        return [scores * (1 + 1e-5), labels]

    def unrewritten() -> Callable[[list[Any]], list[Tensor]]:
        made.append(True)
        return rough

    assert not parity(classifier, rough, provider="torch").passed
    result = parity(classifier, rough, provider="torch", unrewritten=unrewritten)
    assert result.passed and result.baseline == "the model exported without rewrites"
    assert result.baseline_rel_error == pytest.approx(1e-5, rel=0.05)

    def rougher(inputs: list[Any]) -> list[Tensor]:
        scores, labels = native(classifier)(inputs)
        return [scores * (1 + 3e-5), labels]

    with pytest.raises(
        VerificationError, match=r"output_0 is 3\.00e-05, .* without rewrites itself has 9"
    ):
        parity(classifier, rougher, provider="torch", unrewritten=unrewritten).checked()
    made.clear()
    result = parity(classifier, native(classifier), provider="torch", unrewritten=unrewritten)
    assert result.passed and result.baseline == "PyTorch" and not made


@pytest.mark.parametrize("gain", [1.0, 1e-7])
def test_what_is_wrong_without_rewrites_too_is_wrong(gain: float) -> None:
    model = nn.Linear(6, 5)
    with torch.no_grad():
        model.weight[2] *= gain
        model.bias[2] *= gain
    program = captured(model, torch.randn(4, 6))
    signs = torch.ones(5)
    signs[2] = -1

    def wrong(inputs: list[Any]) -> list[Tensor]:
        return [native(program)(inputs)[0] * signs]

    result = parity(program, wrong, provider="torch", unrewritten=lambda: wrong)
    assert not result.passed
    assert result.channel == (None if gain == 1 else "channel 2 of axis 1")


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


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_rewritten_and_compared() -> None:
    model = Folded().cuda()
    program = captured(model, torch.randn(2, 4, 8, 8, device="cuda"))
    graph_module, _ = optimize_graph(program, Plan().passes)
    assert count(graph_module) == {"conv2d": 1, "relu": 1}

    def candidate(inputs: list[Any]) -> list[Tensor]:
        return [result.cpu() for result in run_flat(graph_module, inputs, double=False)]

    assert parity(program, candidate, provider="torch", rtol=1e-3).passed


class Head(nn.Module):
    """A head of zeros, as torchvision's ViT starts with, beside one that answers."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.other = nn.Linear(6, 5), nn.Linear(6, 5)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.zero(x), self.other(x)


@pytest.mark.parametrize("shapes", [None, {"x": {0: Dim.DYNAMIC}}])
def test_a_result_that_does_not_change_proves_nothing(shapes: Any) -> None:
    program = captured(Head(), torch.randn(4, 6), dynamic_shapes=shapes)
    result = parity(program, native(program), provider="torch")
    assert result.passed
    assert result.unchanged == (program.output_names[0],)
    assert result.doubt == (
        "the result is the same for all samples, to within the tolerance, so that parity proves "
        f"nothing of {program.output_names[0]}"
    )


def test_a_change_within_the_tolerance_proves_nothing_either(classifier: Captured) -> None:
    exact = parity(classifier, native(classifier), provider="torch")
    loose = parity(classifier, native(classifier), provider="torch", rtol=2.0)
    assert (exact.unchanged, exact.doubt) == ((), None)
    assert loose.unchanged == tuple(classifier.output_names)
