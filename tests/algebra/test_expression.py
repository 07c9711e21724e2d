"""Formulas that are equal have one normal form, and those that differ somewhere do not."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passfx.algebra import functions as f
from passfx.algebra.expression import (
    Expression,
    Function,
    Variable,
    X,
    agree,
    constant,
    sigmoid,
    tanh,
)

x, axes = X, (1,)
inf = math.inf

EQUAL: list[tuple[Expression, ...]] = [
    (x * x, x**2, -x * -x),
    (x / 4, x * 0.25, 0.25 * x, (x + x) / 8),
    (2 - x, -(x - 2), -x + 2),
    (x * (x + 1), x * x + x, (1 + x) * x),
    (1 / (1 + f.exp(-x)), sigmoid(x), (tanh(x / 2) + 1) / 2, (f.exp(-x) * 3 + 3) ** -1 * 3),
    (f.clip(x + 3, 0, 6) / 6, f.clip(x / 6 + 0.5, 0, 1), 1 - f.clip((3 - x) / 6, 0, 1)),
    (f.clip(f.clip(x, 0, inf), -inf, 6), f.clip(x, 0, 6), f.minimum(f.maximum(x, 0), 6)),
    (f.maximum(x, 2 * x), f.maximum(x * 2, x), -f.minimum(-x, -2 * x)),
    (f.erf(-x), -f.erf(x)),
    ((x + 1) ** 0.5 / x, x**-1 * (1 + x) ** 0.5),
    (1 / (x + 1) ** 0.5, (x + 1) ** -0.5),
    (f.mean(2 * x + 3, axes), 2 * f.mean(x, axes) + 3),
    (f.total(-x, axes), -f.total(x, axes)),
    (f.where(f.above(x), x, 2 * x), f.where(f.above(3 * x), x, x + x)),
]
DIFFERENT: list[tuple[Expression, Expression]] = [
    (x / x, constant(1)),
    ((x * x) ** 0.5, x),
    ((x**0.5) ** 2, x),
    (x**2, x**3),
    (f.clip(x, 0, 6), f.clip(x, 0, 5)),
    (f.clip(x, 0, inf), x),
    (f.maximum(x, 2 * x), f.maximum(x, 3 * x)),
    (f.mean(x, (1,)), f.mean(x, (2,))),
    (f.mean(x, axes), f.total(x, axes)),
    (f.above(x), f.above(-x)),
    (1 / (2 + f.exp(-x)), sigmoid(x)),
    (f.exp(x) ** 2, f.exp(x)),
]


@pytest.mark.parametrize("forms", EQUAL)
def test_equal(forms: tuple[Expression, ...]) -> None:
    first, *others = forms
    for other in others:
        assert agree(first, other), other


@pytest.mark.parametrize("forms", DIFFERENT)
def test_different(forms: tuple[Expression, Expression]) -> None:
    assert not agree(*forms)


NAMES: dict[str, Callable[..., float]] = {
    "tanh": math.tanh,
    "erf": math.erf,
    "exp": math.exp,
    "clip": lambda value, low, high: min(max(value, low), high),
    "maximum": max,
}


def at(item: Expression, value: float) -> float:
    """An expression's value."""
    total = 0.0
    for product, factor in item.terms:
        for base, exponent in product:
            if isinstance(base, Expression):
                factor *= at(base, value) ** exponent
            elif isinstance(base, Variable):
                factor *= value**exponent
            else:
                assert isinstance(base, Function)
                inside = (at(part, value) for part in base.inside)
                factor *= NAMES[base.name](*inside) ** exponent
        total += factor
    return total


Pair = tuple[Expression, Callable[[float], float]]


def joined(pairs: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    numbers = st.sampled_from([-2.0, -1.0, -0.5, 0.25, 1.0, 3.0])
    return st.one_of(
        st.tuples(pairs, pairs).map(
            lambda p: (p[0][0] + p[1][0], lambda v: p[0][1](v) + p[1][1](v))
        ),
        st.tuples(pairs, pairs).map(
            lambda p: (p[0][0] * p[1][0], lambda v: p[0][1](v) * p[1][1](v))
        ),
        st.tuples(pairs, pairs).map(
            lambda p: (f.maximum(p[0][0], p[1][0]), lambda v: max(p[0][1](v), p[1][1](v)))
        ),
        st.tuples(pairs, numbers).map(lambda p: (p[0][0] * p[1], lambda v: p[0][1](v) * p[1])),
        st.tuples(pairs, numbers).map(lambda p: (p[1] - p[0][0], lambda v: p[1] - p[0][1](v))),
        pairs.map(lambda p: (p[0] ** 2, lambda v: p[1](v) ** 2)),
        pairs.map(lambda p: (tanh(p[0]), lambda v: math.tanh(p[1](v)))),
        pairs.map(lambda p: (sigmoid(p[0]), lambda v: (1 + math.tanh(p[1](v) / 2)) / 2)),
        pairs.map(lambda p: (f.clip(p[0], -1, 2), lambda v: min(max(p[1](v), -1.0), 2.0))),
    )


@given(
    pair=st.recursive(st.just((X, lambda v: v)), joined, max_leaves=8),
    value=st.floats(-2, 2),
)
def test_the_normal_form_has_the_value_of_what_was_written(pair: Pair, value: float) -> None:
    expression, function = pair
    wanted = function(value)
    if abs(wanted) < 1e6:
        assert math.isclose(at(expression, value), wanted, rel_tol=1e-7, abs_tol=1e-7)
