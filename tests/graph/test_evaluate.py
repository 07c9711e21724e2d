"""Float64 evaluation is float64 throughout; native evaluation is the module itself."""

import copy
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from passfx.graph.evaluate import evaluate, run_flat, widen
from passfx.graph.query import is_call, is_constant
from passfx.verify.error import relative_error
from tests.helpers import captured, randomize


def run(model: nn.Module, *inputs: Any, double: bool = True) -> tuple[Any, ...]:
    return run_flat(captured(model, *inputs).graph_module, inputs, double=double)


class Narrow(nn.Module):
    """Every way of asking for a narrow dtype explicitly."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            x.to(torch.float16) / 3,
            x.half().float(),
            x.type_as(torch.zeros(1, dtype=torch.bfloat16)) * 0.1,
            torch.full((2,), 0.1, dtype=torch.float16) * x.sum(),
            torch.zeros(2, dtype=torch.float16) + x.sum() * 0.1,
            torch.softmax(x, 1, dtype=torch.float32),
        )


def test_explicit_narrow_dtypes_are_computed_in_float64() -> None:
    x = torch.randn(2, 3)
    wide = x.double()
    wanted = (
        wide / 3,
        wide,
        wide * 0.1,
        torch.full((2,), 0.1).double().fill_(0.1) * wide.sum(),
        wide.sum().expand(2) * 0.1,
        torch.softmax(wide, 1),
    )
    for result, expected in zip(run(Narrow(), x), wanted, strict=True):
        assert result.dtype == torch.float64
        assert relative_error(result, expected) <= 1e-15


class Default(nn.Module):
    """Every way of getting the default dtype without naming it."""

    def forward(self, counts: Tensor) -> tuple[Tensor, ...]:
        return (
            counts / 3,
            counts * 0.1,
            torch.sin(counts),
            torch.full((3,), 0.1) + counts,
            torch.arange(0, 1, 0.1) * counts.sum(),
            torch.linspace(0, 1, 7) + counts.sum(),
            torch.where(counts > 1, 0.1, 0.7),
            torch.where(counts > 1, counts, 0.7),
            torch.where(counts > 1, 0.1, counts),
            torch.pow(0.1, counts),
            torch.atan2(counts, counts * counts),
            torch.fft.rfft(counts).abs() / 3,
            (counts > 1) * 0.1,
        )


def test_the_default_dtype_is_float64_too() -> None:
    counts = torch.tensor([1, 2, 3])
    wide = counts.double()
    wanted = (
        wide / 3,
        wide * 0.1,
        torch.sin(wide),
        wide + 0.1,
        torch.arange(0, 1, 0.1, dtype=torch.float64) * 6,
        torch.linspace(0, 1, 7, dtype=torch.float64) + 6,
        torch.tensor([0.7, 0.1, 0.1], dtype=torch.float64),
        torch.tensor([0.7, 2, 3], dtype=torch.float64),
        torch.tensor([1, 0.1, 0.1], dtype=torch.float64),
        torch.pow(0.1, wide),
        torch.atan2(wide, wide * wide),
        torch.fft.rfft(wide).abs() / 3,
        (counts > 1).double() * 0.1,
    )
    for result, expected in zip(run(Default(), counts), wanted, strict=True):
        assert relative_error(result, expected) <= 1e-15
    assert torch.get_default_dtype() == torch.float32


def test_other_threads_keep_their_default_dtype() -> None:
    module, counts = captured(Default(), torch.tensor([1, 2, 3])).graph_module, torch.arange(3)
    seen: set[torch.dtype] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.update((torch.ones(2).dtype, (counts / 3).dtype, torch.get_default_dtype()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(20):
            run_flat(module, [counts])
    finally:
        stop.set()
        thread.join()
    assert seen == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_narrow_model_is_evaluated_as_its_float64_copy(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten())
    randomize(model).to(dtype)
    x = torch.randn(2, 3, 6, 6).to(dtype)
    (result,) = run(model, x)
    with torch.no_grad():
        assert relative_error(result, model.double().eval()(x.double())) <= 1e-14


def test_complex_values_are_widened() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x) * 0.1

    x = torch.randn(2, 7)
    (result,) = run(Spectrum(), x)
    assert result.dtype == torch.complex128
    assert relative_error(result, torch.fft.rfft(x.double()) * 0.1) <= 1e-15


def test_integers_and_booleans_stay_what_they_are() -> None:
    class Indices(nn.Module):
        def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            return at + 1, x[at], x > 0, x.argmax(1)

    x, at = torch.randn(3, 4), torch.tensor([2, 0])
    results = run(Indices(), x, at)
    wanted = (at + 1, x[at].double(), x > 0, x.argmax(1))
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == expected.dtype and torch.equal(result, expected)


def test_widen_leaves_what_is_not_floating_alone() -> None:
    assert widen(torch.float16) == torch.float64 and widen(torch.int8) == torch.int8
    assert widen(torch.complex64) == torch.complex128
    assert widen("nearest") == "nearest" and widen(1.5) == 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_native_evaluation_is_the_module_bit_by_bit(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.AvgPool2d(2))
    randomize(model).to(dtype).eval()
    x = torch.randn(2, 3, 6, 6).to(dtype)
    (result,) = run(model, x, double=False)
    with torch.no_grad():
        wanted = model(x)
    assert result.dtype == dtype and torch.equal(result, wanted)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        def third(x: Tensor) -> Tensor:
            return self.negative(x).half().float() / 3

        return torch.cond(x.sum() > 0, self.positive, third, (x,))


def test_both_branches_of_a_condition_are_run() -> None:
    model = Branches()
    program = captured(model, torch.randn(2, 3))
    for x in (torch.ones(2, 3), -torch.ones(2, 3)):
        (native,) = run_flat(program.graph_module, [x], double=False)
        (wide,) = run_flat(program.graph_module, [x])
        with torch.no_grad():
            assert torch.equal(native, model(x))
            layer = model.positive if x.sum() > 0 else model.negative
            exact = copy.deepcopy(layer).double()(x.double()) / (1 if x.sum() > 0 else 3)
        assert wide.dtype == torch.float64 and relative_error(wide, exact) <= 1e-15


def test_a_given_value_is_used_instead_of_the_constant() -> None:
    program = captured(nn.Linear(3, 2, bias=False), torch.randn(4, 3))
    nodes = list(program.graph_module.graph.nodes)
    (weight,), (x,) = filter(is_constant, nodes), program.placeholders
    values: dict[Node, Any] = {weight: torch.ones(2, 3), x: torch.ones(4, 3)}
    evaluate(filter(is_call, nodes), values)
    (result,) = program.results
    assert torch.equal(values[result], torch.full((4, 2), 3.0, dtype=torch.float64))


class Alive(TorchDispatchMode):
    """Counts the large tensors that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if result.numel() > 1:
            self.made.append(weakref.ref(result))
        self.peak = max(self.peak, sum(made() is not None for made in self.made))
        return result


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(30):
            x = torch.sin(x)
        return x


@pytest.mark.parametrize("double", [True, False])
def test_values_are_dropped_after_their_last_use(double: bool) -> None:
    program = captured(Chain(), torch.randn(8))
    with Alive() as alive:
        run_flat(program.graph_module, [torch.randn(8)], double=double)
    assert len(alive.made) >= 30
    assert alive.peak <= 4


def test_values_that_nothing_uses_are_dropped_at_once() -> None:
    program = captured(Chain(), torch.randn(8))
    graph = program.graph_module.graph
    (x,) = program.placeholders
    for node in filter(is_call, graph.nodes):
        node.args = (x,)  # thirty unused results but the last
    with Alive() as alive:
        run_flat(program.graph_module, [torch.randn(8)])
    assert len(alive.made) >= 30
    assert alive.peak <= 4
