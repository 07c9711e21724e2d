"""Functions of expressions, and the laws that bring them into normal form."""

import math

from passfx.algebra.expression import (
    Axes,
    Expression,
    Operand,
    as_expression,
    constant,
    function,
    odd,
    order,
)

SAMPLE_VARIANCE = "sample variance"


def clip(x: Expression, low: float, high: float) -> Expression:
    """min(max(x, low), high); clip(a·x + b) = a·clip(x, (low − b)/a, (high − b)/a) + b."""
    factor, shift, rest = x.split()
    if (number := x.number) is not None:
        return constant(min(max(number, low), high))
    low, high = sorted(((low - shift) / factor, (high - shift) / factor))
    if (low, high) == (-math.inf, math.inf):
        return x
    inner = rest.called
    if inner is not None and inner.name == "clip":  # a clip of a clip is one
        rest, *bounds = inner.inside
        low, high = (min(max(item.number or 0.0, low), high) for item in bounds)
    return function("clip", rest, low, high) * factor + shift


def erf(x: Expression) -> Expression:
    """The error function."""
    return odd("erf", x)


def exp(x: Expression) -> Expression:
    """The exponential function."""
    return function("exp", x)


def softplus(x: Expression) -> Expression:
    """log(1 + exp(x)) that does not overflow."""
    return function("softplus", x)


def log(x: Expression) -> Expression:
    """The natural logarithm."""
    return function("log", x)


def maximum(x: Expression, other: Operand) -> Expression:
    """The larger one."""
    other = as_expression(other)
    for a, b in ((x, other), (other, x)):
        if (low := b.number) is not None:
            return clip(a, low, math.inf)
    return function("maximum", *sorted((x, other), key=order))


def minimum(x: Expression, other: Operand) -> Expression:
    """The smaller one: −max(−x, −other)."""
    return -maximum(-x, -as_expression(other))


def mean(x: Expression, axes: Axes) -> Expression:
    """The mean over some axes, which are kept with the size 1; mean(a·x + b) = a·mean(x) + b."""
    factor, shift, rest = x.split()
    return function("mean", rest, axes=axes) * factor + shift


def variance(x: Expression, axes: Axes) -> Expression:
    """The mean of the squared distances from the mean."""
    return mean((x - mean(x, axes)) ** 2, axes)


def total(x: Expression, axes: Axes) -> Expression:
    """The sum over some axes, which are kept with the size 1; sum(a·x) = a·sum(x)."""
    factor, rest = x.as_multiple()
    return function("sum", rest, axes=axes) * factor


def largest(x: Expression, axes: Axes) -> Expression:
    """The maximum over some axes, which are kept with the size 1."""
    return function("largest", x, axes=axes)


def logsumexp(x: Expression, axes: Axes) -> Expression:
    """log(sum(exp(x))) that does not overflow."""
    return function("logsumexp", x, axes=axes)


def above(x: Expression) -> Expression:
    """Whether x > 0."""
    factor, shift, rest = x.split()
    scaled = rest + shift / abs(factor) if factor > 0 else -rest + shift / abs(factor)
    return function("positive", scaled)


def where(condition: Expression, self: Operand, other: Operand) -> Expression:
    """One of two values; which is told by the truth of a comparison."""
    called = condition.called
    if called is not None and called.name == "not":
        return where(called.inside[0], other, self)
    return function("where", condition, self, other)


def hardsigmoid(x: Expression) -> Expression:
    """clip(x + 3, 0, 6)/6."""
    return clip(x + 3, 0, 6) / 6


def layer_norm(x: Expression, axes: Axes, eps: float) -> Expression:
    """(x − mean(x))/sqrt(var(x) + eps)."""
    return (x - mean(x, axes)) / (variance(x, axes) + eps) ** 0.5


def rms_norm(x: Expression, axes: Axes, eps: float) -> Expression:
    """x/sqrt(mean(x²) + eps)."""
    return x / (mean(x**2, axes) + eps) ** 0.5
