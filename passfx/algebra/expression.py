"""Formulas in one normal form, so that two ways to write a function compare equal.

An expression is a sum of terms, a term a number times a product of powers, and the base of a power
a variable, a function of expressions, or a sum. What is equal over the real numbers by the laws of
a field comes out the same: x·x, x² and square(x); x/6 and x·(1/6); c·a + c·b and c·(a + b). So do
a few laws of functions: clips of affine values, odd functions, the logistic function as a
hyperbolic tangent. Nothing is cancelled that may be zero: x/x is not 1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

Operand = Union["Expression", float]
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Variable:
    """What an expression is of: "x", or a constant tensor, which `reads` then is."""

    name: str
    reads: Any = None

    @property
    def outline(self) -> str:
        """Its kind, without what it is in particular."""
        return "x" if self.reads is None else "constant"

    @property
    def inside(self) -> tuple["Expression", ...]:
        """The expressions that it is made of."""
        return ()


@dataclass(frozen=True)
class Function:
    """A function of expressions; `axes` are those that a reduction is over."""

    name: str
    inside: tuple["Expression", ...]
    axes: Axes | None = None

    @cached_property
    def outline(self) -> str:
        """Its name and the outlines of its arguments."""
        return f"{self.name}({','.join(item.outline for item in self.inside)})"


Base = Union[Variable, Function, "Expression"]
Power = tuple[Base, float]
Product = tuple[Power, ...]


@dataclass(frozen=True)
class Expression:
    """A sum: products of powers, in order, and what each is multiplied by."""

    terms: tuple[tuple[Product, float], ...]

    @cached_property
    def outline(self) -> str:
        """The expression without its numbers."""
        return "+".join(_outline(product) for product, _ in self.terms) or "0"

    @property
    def inside(self) -> tuple["Expression", ...]:
        """The expressions that it is made of."""
        return (self,)

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """The numbers of its own terms and of all that is inside, in order."""
        return tuple(_numbers(self))

    @property
    def number(self) -> float | None:
        """What it is, if it is a number."""
        if not self.terms:
            return 0.0
        ((product, factor), *others) = self.terms
        return None if product or others else factor

    @property
    def called(self) -> Function | None:
        """What it is, if it is a function of something, once."""
        match self.terms:
            case (((((Function() as called, 1.0),), 1.0)),):
                return called
        return None

    def split(self) -> tuple[float, float, "Expression"]:
        """factor, shift and rest with self = factor·rest + shift, the rest led by a factor of 1."""
        shift = sum(factor for product, factor in self.terms if not product)
        moving = [(product, factor) for product, factor in self.terms if product]
        if not moving:
            return 1.0, shift, ZERO
        lead = moving[0][1]
        rest = tuple((product, factor / lead) for product, factor in moving)
        return lead, shift, Expression(rest)

    def __add__(self, other: Operand) -> "Expression":
        return _sum([*self.terms, *as_expression(other).terms])

    def __mul__(self, other: Operand) -> "Expression":
        other = as_expression(other)
        for a, b in ((self, other), (other, self)):
            if (value := a.number) is not None:
                return _sum([(product, factor * value) for product, factor in b.terms])
        (left, factor), (right, by) = self._as_term(), other._as_term()
        return _sum([(_multiply(left, right), factor * by)])

    def __pow__(self, exponent: float) -> "Expression":
        if exponent == 1:
            return self
        if (value := self.number) is not None:
            return constant(value**exponent) if value > 0 else function("power", self, exponent)
        product, factor = self._as_term()
        whole = float(exponent).is_integer()
        if factor <= 0 and not whole:
            return _of(self, exponent)
        if len(product) == 1 or whole:
            powers = [_raise(power, exponent) for power in product]
            if None not in powers:
                raised = tuple(item for item in powers if item is not None)
                return _logistic(_sum([(_multiply(raised, ()), float(factor**exponent))]))
        return _of(Expression(((product, 1.0),)), exponent) * float(factor**exponent)

    def __neg__(self) -> "Expression":
        return self * -1.0

    def __sub__(self, other: Operand) -> "Expression":
        return self + -as_expression(other)

    def __truediv__(self, other: Operand) -> "Expression":
        return self * as_expression(other) ** -1

    def __rsub__(self, other: float) -> "Expression":
        return -self + other

    def __rtruediv__(self, other: float) -> "Expression":
        return self**-1 * other

    __radd__, __rmul__ = __add__, __mul__

    def as_multiple(self) -> tuple[float, "Expression"]:
        """factor and rest with self = factor·rest, the rest led by a factor of 1."""
        product, factor = self._as_term()
        return factor, _sum([(product, 1.0)])

    def _as_term(self) -> tuple[Product, float]:
        """One product and its factor; a sum becomes the base of a first power."""
        if len(self.terms) == 1:
            return self.terms[0]
        lead = next(factor for product, factor in self.terms if product)
        scaled = Expression(tuple((product, factor / lead) for product, factor in self.terms))
        return ((scaled, 1.0),), lead


ZERO = Expression(())
X = Expression(((((Variable("x"), 1.0),), 1.0),))


def constant(number: float) -> Expression:
    """A number as an expression."""
    return Expression((((), float(number)),)) if number else ZERO


def given(name: str, reads: Any) -> Expression:
    """A constant tensor as an expression."""
    return Expression(((((Variable(name, reads), 1.0),), 1.0),))


def as_expression(item: Operand) -> Expression:
    """An expression, or a number as one."""
    return item if isinstance(item, Expression) else constant(item)


def order(x: Expression) -> tuple[str, tuple[float, ...]]:
    """By what expressions are put in order."""
    return x.outline, x.numbers


def function(name: str, *inside: Operand, axes: Axes | None = None) -> Expression:
    """A function that no law is known of."""
    called = Function(name, tuple(map(as_expression, inside)), axes)
    return Expression(((((called, 1.0),), 1.0),))


def odd(name: str, x: Expression) -> Expression:
    """A function with f(−x) = −f(x)."""
    return -function(name, -x) if x.split()[0] < 0 else function(name, x)


def tanh(x: Expression) -> Expression:
    """The hyperbolic tangent."""
    return odd("tanh", x)


def sigmoid(x: Expression) -> Expression:
    """1/(1 + exp(−x)) = (1 + tanh(x/2))/2."""
    return tanh(x * 0.5) * 0.5 + 0.5


def agree(a: Expression, b: Expression, tolerance: float = 1e-12) -> bool:
    """Whether two expressions are the same, their numbers to a relative tolerance."""
    if a.outline != b.outline or list(_particulars(a)) != list(_particulars(b)):
        return False
    pairs = zip(a.numbers, b.numbers, strict=True)
    return all(math.isclose(x, y, rel_tol=tolerance) for x, y in pairs)


def tensors_of(x: Expression) -> Iterator[Any]:
    """What the constant tensors of an expression are, in order."""
    return (item for item in _particulars(x) if not isinstance(item, tuple) and item is not None)


def axes_of(x: Expression) -> set[tuple[int, ...]]:
    """The axes of its reductions."""
    return {item for item in _particulars(x) if isinstance(item, tuple)}


def _of(base: Base, exponent: float) -> Expression:
    return Expression(((((base, exponent),), 1.0),))


def _sum(terms: Iterable[tuple[Product, float]]) -> Expression:
    """A sum in order, like terms as one, and what all terms have in common taken out."""
    found: dict[Product, float] = {}
    for product, factor in _flat(terms):
        found[product] = found.get(product, 0.0) + factor
    found = {product: factor for product, factor in found.items() if factor}
    if len(found) > 1:
        shared = _common(found)
        if shared:
            rest = {_without(product, shared): factor for product, factor in found.items()}
            return _ordered(rest) * Expression(((shared, 1.0),))
    return _ordered(found)


def _ordered(terms: Mapping[Product, float]) -> Expression:
    keyed = sorted(terms.items(), key=lambda item: (_outline(item[0]), item[1]))
    return Expression(tuple(keyed))


def _flat(terms: Iterable[tuple[Product, float]]) -> Iterator[tuple[Product, float]]:
    """The terms; a product that is but a sum is the terms of that."""
    for product, factor in terms:
        ((base, exponent), *others) = product or ((None, 0.0),)
        if isinstance(base, Expression) and exponent == 1 and not others:
            yield from ((inner, factor * item) for inner, item in base.terms)
        else:
            yield product, factor


def _common(terms: Iterable[Product]) -> Product:
    """The powers of variables that every product has."""
    first, *others = terms
    counts = []
    for base, exponent in first:
        least = min([exponent, *(dict(product).get(base, 0.0) for product in others)])
        if least >= 1 and isinstance(base, Variable) and base.reads is None:
            counts.append((base, float(math.floor(least))))
    return tuple(counts)


def _without(product: Product, shared: Product) -> Product:
    less = dict(shared)
    powers = ((base, exponent - less.get(base, 0.0)) for base, exponent in product)
    return tuple((base, exponent) for base, exponent in powers if exponent)


def _multiply(a: Product, b: Product) -> Product:
    """A product of powers, in order; whole powers of one base, on one side of the line, add up."""
    found: list[Power] = list(a)
    for base, exponent in b:
        place = next((n for n, (own, _) in enumerate(found) if own == base), None)
        if place is not None and _adds(found[place][1], exponent):
            found[place] = base, found[place][1] + exponent
        else:
            found.append((base, exponent))
    return tuple(sorted(found, key=lambda power: (_outline((power,)), _numbers_of(power))))


def _adds(a: float, b: float) -> bool:
    return a.is_integer() and b.is_integer() and (a > 0) == (b > 0)


def _raise(power: Power, exponent: float) -> Power | None:
    """A power of a power, where that is one for every number."""
    base, own = power
    whole = own.is_integer() and float(exponent).is_integer()
    return (base, own * exponent) if whole or own in (1, -1) or exponent == -1 else None


def _logistic(x: Expression) -> Expression:
    """1/(1 + exp(−u)) as the logistic function of u."""
    if len(x.terms) != 1 or len(x.terms[0][0]) != 1:
        return x
    (((base, exponent),), factor) = x.terms[0]
    if exponent != -1 or not isinstance(base, Expression):
        return x
    lead, shift, rest = base.split()
    called = rest.called
    if called is None or called.name != "exp" or lead != shift:
        return x
    return sigmoid(-called.inside[0]) * (factor / lead)


def _outline(product: Product) -> str:
    powers = (
        f"({base.outline})^{exponent:g}" if isinstance(base, Expression) else
        f"{base.outline}^{exponent:g}"
        for base, exponent in product
    )  # fmt: skip
    return "·".join(powers) or "1"


def _numbers(x: Expression) -> Iterator[float]:
    for product, factor in x.terms:
        yield factor
        for power in product:
            yield from _numbers_of(power)


def _numbers_of(power: Power) -> tuple[float, ...]:
    return tuple(number for item in power[0].inside for number in item.numbers)


def _particulars(x: Expression) -> Iterator[Any]:
    """What the outline leaves out besides the numbers: axes, and which tensors are read."""
    for product, _ in x.terms:
        for base, _ in product:
            if isinstance(base, Variable):
                yield base.reads
            elif isinstance(base, Function) and base.axes is not None:
                yield base.axes
            for item in base.inside:
                yield from _particulars(item)
