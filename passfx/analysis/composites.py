"""Composite operators, each by the formulas that it is written out as."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from math import inf, isfinite, pi, sqrt
from typing import Any

from torch._ops import OpOverload

from passfx.algebra import functions as f
from passfx.algebra.expression import (
    Axes,
    Expression,
    Operand,
    X,
    agree,
    axes_of,
    function,
    given,
    sigmoid,
    tanh,
    tensors_of,
)
from passfx.graph.ops import aten

_NEAR = 1e-3
_SAMPLE = {"weight": given("weight", "weight"), "bias": given("bias", "bias")}
_NONE = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Meaning:
    """What a formula is made with; `is_exact` is false where numbers are only near."""

    axes: Axes = ()
    number: float = 0.0
    weight: Any = None
    bias: Any = None
    is_exact: bool = True


@dataclass(frozen=True)
class Composite:
    """An operator, and one way to write it out.

    Attributes:
        target: the operator.
        formula: of x, and of those of `axes`, `number`, `weight` and `bias` that it depends on.
        arguments: the further arguments of the operator, for what the formula is made with.
        keywords: those that are always the same.
        name: what reports call it, if not by its operator.
        below: what the number must be less than.
        refusal: why the formula is not the operator after all.
        cpu_refusal: why it had better stay as it is on a CPU.
    """

    target: OpOverload
    formula: Callable[..., Expression]
    arguments: Callable[[Meaning], tuple[Any, ...]] = lambda _: ()
    keywords: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    below: float = inf
    refusal: str | None = None
    cpu_refusal: str | None = None

    def __str__(self) -> str:
        return self.name or str(self.target.overloadpacket.__name__)

    @property
    def depends_on(self) -> frozenset[str]:
        """What the formula depends on besides x."""
        return frozenset(inspect.signature(self.formula).parameters) - {"x"}

    def outlines(self) -> set[str]:
        """The outlines of the formula: with a weight and a bias, and without."""
        own = [name for name in _NONE if name in self.depends_on]
        choices = product(*((_SAMPLE[name], _NONE[name]) for name in own))
        known = {"axes": (0,), "number": 0.5}
        return {self._at(known | dict(zip(own, choice, strict=True))).outline for choice in choices}

    def _at(self, known: dict[str, Any]) -> Expression:
        return self.formula(X, **{name: known[name] for name in self.depends_on})

    def meaning(self, formula: Expression) -> Meaning | None:
        """What the formula is made with to be this operator, if it can be."""
        axes, tensors = axes_of(formula), list(dict.fromkeys(tensors_of(formula)))
        numbers = {item for item in formula.numbers if isfinite(item) and 0 < item < self.below}
        if len(axes) > 1 or ("axes" in self.depends_on) != bool(axes):
            return None
        near = None
        for number in sorted(numbers) if "number" in self.depends_on else [0.0]:
            for weight, bias in permutations([*tensors, None, None], 2):
                if {weight, bias} - {None} != set(tensors):
                    continue
                read = {"weight": weight, "bias": bias}
                named = {name: given(name, item) for name, item in read.items() if item is not None}
                meaning = Meaning(next(iter(axes), ()), number, weight, bias)
                wanted = self._at({"number": number, "axes": meaning.axes} | _NONE | named)
                if agree(formula, wanted):
                    return meaning
                if agree(formula, wanted, _NEAR):
                    near = replace(meaning, is_exact=False)
        return near


@cache
def composites() -> dict[str, tuple[Composite, ...]]:
    """The composites by the outlines of their formulas."""
    found: dict[str, tuple[Composite, ...]] = {}
    for item in _COMPOSITES:
        for outline in item.outlines():
            found[outline] = (*found.get(outline, ()), item)
    return found


def _relu(x: Expression) -> Expression:
    return f.clip(x, 0, inf)


def _gelu_by_tanh(x: Expression) -> Expression:
    return x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2


def _softplus(x: Expression) -> Expression:
    return f.log(1 + f.exp(x))


def _shifted(x: Expression, axes: Axes) -> Expression:
    return x - f.largest(x, axes)


def _softmax(x: Expression, axes: Axes) -> Expression:
    return f.exp(_shifted(x, axes)) / f.total(f.exp(_shifted(x, axes)), axes)


def _logsumexp(x: Expression, axes: Axes) -> Expression:
    return f.largest(x, axes) + f.log(f.total(f.exp(_shifted(x, axes)), axes))


def _centred(x: Expression, axes: Axes) -> Expression:
    return x - f.mean(x, axes)


def _sample_variance(x: Expression, axes: Axes) -> Expression:
    return function(f.SAMPLE_VARIANCE, x, axes=axes)


def _mean_of_squares(x: Expression, axes: Axes) -> Expression:
    return f.mean(x**2, axes) - f.mean(x, axes) ** 2


def _layer_norm(
    x: Expression, axes: Axes, number: float, weight: Operand, bias: Operand
) -> Expression:
    return f.layer_norm(x, axes, number) * weight + bias


def _layer_norm_by_squares(
    x: Expression, axes: Axes, number: float, weight: Operand, bias: Operand
) -> Expression:
    return _centred(x, axes) / (_mean_of_squares(x, axes) + number) ** 0.5 * weight + bias


def _rms_norm(x: Expression, axes: Axes, number: float, weight: Operand) -> Expression:
    return f.rms_norm(x, axes, number) * weight


def _axis(made: Meaning) -> tuple[Any, ...]:
    return made.axes


def _number(made: Meaning) -> tuple[Any, ...]:
    return (made.number,)


_OVERFLOWS = "exp overflows for large values, where {} does not"
_SLOWER = "ONNX Runtime's {} takes longer on a CPU"
_COUNTED = "the variance is divided by n − 1, that of a layer norm by n"
_OUTSIDE = "the number that keeps it from dividing by zero is added outside of the root"

_COMPOSITES = (
    Composite(aten.relu.default, _relu),
    Composite(aten.sigmoid.default, sigmoid),
    Composite(aten.silu.default, lambda x: x * sigmoid(x)),
    Composite(aten.hardsigmoid.default, f.hardsigmoid),
    Composite(aten.hardswish.default, lambda x: x * f.hardsigmoid(x)),
    Composite(aten.gelu.default, lambda x: x * (1 + f.erf(x / sqrt(2))) / 2),
    Composite(
        aten.gelu.default, _gelu_by_tanh, keywords=(("approximate", "tanh"),), name="gelu by tanh"
    ),
    Composite(aten.mish.default, lambda x: x * tanh(f.softplus(x))),
    Composite(
        aten.mish.default, lambda x: x * tanh(_softplus(x)), cpu_refusal=_SLOWER.format("Softplus")
    ),
    Composite(aten.softplus.default, _softplus, refusal=_OVERFLOWS.format("softplus")),
    Composite(
        aten.leaky_relu.default, lambda x, number: f.maximum(x, x * number), _number, below=1
    ),
    Composite(
        aten.leaky_relu.default, lambda x, number: f.where(f.above(x), x, x * number), _number
    ),
    Composite(
        aten.leaky_relu.default, lambda x, number: f.where(f.above(-x), x * number, x), _number
    ),
    Composite(
        aten.leaky_relu.default, lambda x, number: _relu(x) + f.clip(x, -inf, 0) * number, _number
    ),
    Composite(
        aten.elu.default, lambda x, number: f.where(f.above(x), x, (f.exp(x) - 1) * number), _number
    ),
    Composite(
        aten.elu.default,
        lambda x, number: f.where(f.above(-x), (f.exp(x) - 1) * number, x),
        _number,
    ),
    Composite(aten.softmax.int, _softmax, _axis),
    Composite(
        aten.softmax.int,
        lambda x, axes: f.exp(x) / f.total(f.exp(x), axes),
        refusal=f"{_OVERFLOWS.format('softmax')}; subtract the maximum first",
    ),
    Composite(aten.log_softmax.int, lambda x, axes: x - f.logsumexp(x, axes), _axis),
    Composite(aten.log_softmax.int, lambda x, axes: x - _logsumexp(x, axes), _axis),
    Composite(
        aten.logsumexp.default,
        _logsumexp,
        lambda made: (list(made.axes), True),
        cpu_refusal=_SLOWER.format("ReduceLogSumExp"),
    ),
    Composite(
        aten.linalg_vector_norm.default,
        lambda x, axes: f.total(x**2, axes) ** 0.5,
        lambda made: (2, list(made.axes), True),
        name="norm of vectors",
        cpu_refusal=_SLOWER.format("ReduceL2"),
    ),
    Composite(aten.rms_norm.default, _rms_norm),
    Composite(aten.layer_norm.default, _layer_norm),
    Composite(aten.layer_norm.default, _layer_norm_by_squares),
    Composite(
        aten.layer_norm.default,
        lambda x, axes, number: _centred(x, axes) / (_sample_variance(x, axes) + number) ** 0.5,
        refusal=_COUNTED,
    ),
    Composite(
        aten.layer_norm.default,
        lambda x, axes, number: _centred(x, axes) / (_sample_variance(x, axes) ** 0.5 + number),
        refusal=_COUNTED,
    ),
    Composite(
        aten.layer_norm.default,
        lambda x, axes, number: _centred(x, axes) / (f.variance(x, axes) ** 0.5 + number),
        refusal=_OUTSIDE,
    ),
)
