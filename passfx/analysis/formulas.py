"""What some nodes compute, as a formula of one value that they all come from."""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import copysign, inf, isclose, isfinite, pi, sqrt
from math import e as euler
from typing import Any, cast

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from passfx.algebra import functions as formula
from passfx.algebra.expression import (
    Axes,
    Expression,
    X,
    as_expression,
    function,
    given,
    sigmoid,
    tanh,
)
from passfx.algebra.functions import SAMPLE_VARIANCE
from passfx.graph.ops import COPIES, aten
from passfx.graph.query import arguments, constant, is_call, is_constant, tensor
from passfx.graph.shapes import ints, known_tensor, number_dtype

_MOST_NODES = 24  # a layer norm with everything by hand takes twelve
_MOST_NUMBERS = 200

# Numbers without a short decimal, which a model holds as roundings.
_IRRATIONAL = (sqrt(2), sqrt(0.5), sqrt(2 / pi), 2 * sqrt(2 / pi), 0.044715 * sqrt(2 / pi))
_KNOWN = (*_IRRATIONAL, *(1 / number for number in (3, 6, 7, 9, 12)))


@dataclass(frozen=True)
class Region:
    """Nodes that compute the last of them from one value and constants.

    Attributes:
        source: the value.
        nodes: the nodes, in topological order, without the constants.
        shared: one of them, not the last, that others read too; None where there is none.
    """

    source: Node
    nodes: tuple[Node, ...]
    shared: Node | None

    @cached_property
    def meant(self) -> dict[Node, Any]:
        """What numbers stand for where they are rounded: constant → tensor, call → arguments."""
        found: dict[Node, Any] = {}
        for node in filter(is_call, self.nodes):
            args = map_aggregate(node.args, partial(meant, dtype=number_dtype(node)))
            if args != node.args:
                found[node] = args
            for read in filter(_is_number, node.all_input_nodes):
                stored = constant(read)
                exact = meant(stored.item(), stored.dtype)
                if exact != stored.item():
                    found[read] = torch.full(stored.shape, exact, dtype=torch.float64)
        return found

    @cached_property
    def formula(self) -> Expression | None:
        """What the last node computes; None where an operator has no formula, or a long one."""
        known: dict[Node, Any] = {self.source: X}
        found: Any = X
        for node in self.nodes:
            found = known[node] = self._read(node, known)
            length = len(found.numbers) if isinstance(found, Expression) else 0
            if found is None or length > _MOST_NUMBERS:
                return None
        return found if isinstance(found, Expression) else None

    def _read(self, node: Node, known: Mapping[Node, Any]) -> Any:
        """The value of a node: an expression, several of them, or a reduction without its axes."""
        if node.target is operator.getitem:
            parts, index = known[node.all_input_nodes[0]], cast(int, node.args[1])
            return parts[index] if isinstance(parts, tuple) else None
        bound = arguments(node)
        bound |= dict(zip(bound, self.meant.get(node, ()), strict=False))
        read = {name: self._operand(item, known) for name, item in bound.items()}
        is_partial = any(isinstance(item, _Reduced | tuple) for item in read.values())
        if is_partial != is_call(node, aten.unsqueeze):
            return None
        packet = _packet(node)
        try:
            if packet in _SHAPED:
                return _SHAPED[packet](node, **read)
            return _FORMULAS[packet](*read.values())
        except ArithmeticError:  # a division by zero, a power too large
            return None

    def _operand(self, item: Any, known: Mapping[Node, Any]) -> Any:
        if not isinstance(item, Node):
            return item
        if item in known:
            return known[item]
        if not _is_number(item):
            return given(str(item.target), item)
        return as_expression(self.meant.get(item, constant(item)).item())


def regions(node: Node) -> Iterator[Region]:
    """The regions that compute a node, from the smallest on."""
    inside: list[Node] = []
    pending, shared = {node}, None
    while pending and len(inside) <= _MOST_NODES:
        last = max(pending)
        if len(pending) == 1 and inside and tensor(last) is not None:
            yield Region(last, tuple(reversed(inside)), shared)
        if not _has_formula(last):
            return
        if inside and not set(last.users).issubset(inside):
            shared = last
        pending.remove(last)
        inside.append(last)
        pending.update(read for read in last.all_input_nodes if not is_constant(read))


def meant(item: Any, dtype: torch.dtype) -> Any:
    """The number that a number stands for, where it is not quite that in `dtype`.

    That is a known one, such as √2 or 1/6, if it is no further off than a unit in the last place;
    else, if the number is one of a narrow `dtype`, as those of tensors are, the shortest decimal
    that rounds to it.
    """
    if not isinstance(item, float) or not item or not isfinite(item):
        return item
    unit = torch.finfo(dtype).eps
    for known in _KNOWN:
        if isclose(abs(item), known, rel_tol=unit):
            return copysign(known, item)
    if dtype != torch.float64 and _rounded(item, dtype) == item:
        decimals = (float(f"{item:.{digits}g}") for digits in range(1, 18))
        return next(short for short in decimals if _rounded(short, dtype) == item)
    return item


def _rounded(number: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(number, dtype=torch.float64).to(dtype))


def _packet(node: Node) -> Any:
    return node.target.overloadpacket  # type: ignore[union-attr]


def _has_formula(node: Node) -> bool:
    if node.target is operator.getitem:
        return is_call(node.args[0], aten.max, aten.var_mean)
    return is_call(node) and (_packet(node) in _FORMULAS or _packet(node) in _SHAPED)


def _is_number(node: Node) -> bool:
    return is_constant(node) and constant(node).numel() == 1 and constant(node).is_floating_point()


@dataclass(frozen=True)
class _Reduced:
    """A reduction over axes that it does not keep."""

    kept: Expression
    axes: tuple[int, ...]


def _reduced(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """The reader of a reduction, `reduce` being that over axes that are kept."""

    def read(node: Node, self: Any, dim: Any = None, keepdim: bool = False, **others: Any) -> Any:
        count = known_tensor(node.args[0]).ndim
        given = range(count) if dim in (None, []) else ints(dim)
        axes = tuple(sorted(int(axis) % count for axis in given))
        if others.pop("dtype", None) is not None:
            return None
        found = reduce(self, axes, **others)
        if keepdim or not isinstance(found, Expression):
            return found if keepdim else None
        return _Reduced(found, axes)

    return read


def _kept(node: Node, self: Any, dim: int) -> Expression | None:
    """A reduction whose axis is put back."""
    axes = (dim % known_tensor(node).ndim,)
    return self.kept if isinstance(self, _Reduced) and self.axes == axes else None


def _variance(
    x: Expression, axes: Axes, correction: Any = None, unbiased: Any = None
) -> Expression:
    """The variance; divided by n − 1 it is another function."""
    is_plain = unbiased is False or (unbiased is None and correction == 0)
    return formula.variance(x, axes) if is_plain else function(SAMPLE_VARIANCE, x, axes=axes)


def _length(x: Expression, axes: Axes, ord: float) -> Expression | None:
    return formula.total(x**2, axes) ** 0.5 if ord == 2 else None


def _maximum(node: Node, self: Any, other: Any = None, **over: Any) -> Any:
    """The larger one of two, or the largest and its place over an axis."""
    if other is not None:
        return formula.maximum(self, other)
    return _reduced(lambda x, axes: (formula.largest(x, axes), None))(node, self, **over)


def _minimum(node: Node, self: Any, other: Any = None, **_: Any) -> Any:
    return None if other is None else formula.minimum(self, other)


def _layer_norm(
    node: Node,
    input: Expression,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    **_: Any,
) -> Expression:
    axes = _last(node, normalized_shape)
    found = formula.layer_norm(input, axes, eps)
    return found * (1 if weight is None else weight) + (0 if bias is None else bias)


def _rms_norm(
    node: Node,
    input: Expression,
    normalized_shape: Any,
    weight: Any = None,
    eps: float | None = None,
) -> Expression | None:
    if eps is None:
        return None
    found = formula.rms_norm(input, _last(node, normalized_shape), eps)
    return found * (1 if weight is None else weight)


def _last(node: Node, sizes: Any) -> Axes:
    count = known_tensor(node).ndim
    return tuple(range(count - len(sizes), count))


def _softplus(self: Expression, beta: Any, threshold: Any) -> Expression | None:
    return formula.softplus(self) if beta == 1 and threshold >= 20 else None


def _power(self: Any, exponent: Any) -> Expression | None:
    raised = _as_number(exponent)
    if raised is None:
        return formula.exp(exponent) if self == euler else None
    return self**raised if raised and isinstance(self, Expression) else None


def _clip(self: Expression, low: Any, high: Any) -> Expression | None:
    bounds = -inf if low is None else _as_number(low), inf if high is None else _as_number(high)
    if None in bounds or not bounds[0] < bounds[1]:  # type: ignore[operator]
        return None
    return formula.clip(self, *bounds)  # type: ignore[arg-type]


def _as_number(item: Any) -> float | None:
    return item.number if isinstance(item, Expression) else float(item)


def _divided(self: Any, other: Any, rounding_mode: Any = None) -> Expression | None:
    return None if rounding_mode else self / other


_FORMULAS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(COPIES, lambda self, *_: self),
    aten.add: lambda self, other, alpha=1: self + other * alpha,
    aten.sub: lambda self, other, alpha=1: self - other * alpha,
    aten.rsub: lambda self, other, alpha=1: other - self * alpha,
    aten.mul: lambda self, other: self * other,
    aten.div: _divided,
    aten.neg: lambda self: -self,
    aten.reciprocal: lambda self: self**-1,
    aten.square: lambda self: self**2,
    aten.pow: _power,
    aten.sqrt: lambda self: self**0.5,
    aten.rsqrt: lambda self: self**-0.5,
    aten.exp: formula.exp,
    aten.log: formula.log,
    aten.log1p: lambda self: formula.log(self + 1),
    aten.tanh: tanh,
    aten.sigmoid: sigmoid,
    aten.erf: formula.erf,
    aten.erfc: lambda self: 1 - formula.erf(self),
    aten.softplus: _softplus,
    aten.hardsigmoid: formula.hardsigmoid,
    aten.maximum: formula.maximum,
    aten.minimum: formula.minimum,
    aten.relu: lambda self: _clip(self, 0, None),
    aten.relu6: lambda self: _clip(self, 0, 6),
    aten.hardtanh: _clip,
    aten.clamp: _clip,
    aten.clip: _clip,
    aten.clamp_min: lambda self, min: _clip(self, min, None),
    aten.clamp_max: lambda self, max: _clip(self, None, max),
    aten.gt: lambda self, other: formula.above(self - other),
    aten.lt: lambda self, other: formula.above(other - self),
    aten.ge: lambda self, other: function("not", formula.above(other - self)),
    aten.le: lambda self, other: function("not", formula.above(self - other)),
    aten.where: formula.where,
    aten.zeros_like: lambda *_: as_expression(0),
    aten.ones_like: lambda *_: as_expression(1),
    aten.full_like: lambda self, fill_value, *_: as_expression(fill_value),
}

# Those whose formula depends on the axes that a node has, which get the node too.
_SHAPED: dict[Any, Callable[..., Any]] = {
    aten.unsqueeze: _kept,
    aten.layer_norm: _layer_norm,
    aten.rms_norm: _rms_norm,
    aten.mean: _reduced(formula.mean),
    aten.sum: _reduced(formula.total),
    aten.amax: _reduced(formula.largest),
    aten.max: _maximum,
    aten.min: _minimum,
    aten.var: _reduced(_variance),
    aten.std: _reduced(lambda *given, **named: _variance(*given, **named) ** 0.5),
    aten.var_mean: _reduced(
        lambda x, axes, **by: (_variance(x, axes, **by), formula.mean(x, axes))
    ),
    aten.linalg_vector_norm: _reduced(_length),
    aten.logsumexp: _reduced(formula.logsumexp),
}
