"""The sizes and types of the tensors of a captured graph; a dynamic size is a symbol."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._sympy.functions import FloorDiv

from passfx.graph.query import tensor

Size = int | torch.SymInt
Symbols = Mapping[Any, int]

NONE: Symbols = MappingProxyType({})

_UNKNOWN = 4  # more than one, because the tracer takes it for granted, and small


def known_tensor(node: Any) -> Tensor:
    """The fake tensor of a node that must have one."""
    fake = tensor(node)
    assert fake is not None
    return fake


def hint(size: Size, given: Symbols = NONE) -> int:
    """A size as a number: for a dynamic one, that of the captured example.

    A size that depends on data is not known before a run; what it depends on counts as `_UNKNOWN`.

    Args:
        given: values of symbols, instead of those that they have in the example.
    """
    if isinstance(size, int):
        return size
    node = cast(Any, size.node)
    symbols = node.expr.free_symbols
    if node.hint is not None and given.keys().isdisjoint(symbols):
        return int(node.hint)
    known = {symbol: given.get(symbol, example(size, symbol, _UNKNOWN)) for symbol in symbols}
    return int(node.expr.subs(known))


def example(size: torch.SymInt, symbol: Any, unknown: int) -> int:
    """What a symbol of a size is in the example; `unknown` for one that depends on data."""
    environment: Any = size.node.shape_env
    known = getattr(environment, "backed_var_to_val", None)
    if known is None:  # the name of older releases
        known = environment.var_to_val
    return int(known.get(symbol, unknown))


def fixed(size: Size) -> int | None:
    """A size that is one number, also where the tracer made it one; None for one that varies."""
    if isinstance(size, int):
        return size
    expression = cast(Any, size.node).expr
    return int(expression) if expression.is_number else None


def elements(node: Any, given: Symbols = NONE) -> int:
    """The number of elements of a node's tensor, at the example's sizes; `given` as in `hint`."""
    return math.prod(hint(size, given) for size in known_tensor(node).shape)


def nbytes(node: Any) -> int:
    """The bytes of a node's tensor, at the example's sizes."""
    return elements(node) * known_tensor(node).element_size()


def dtypes(nodes: Iterable[Any]) -> set[torch.dtype]:
    """The dtypes of those of some nodes that hold a tensor."""
    return {fake.dtype for fake in map(tensor, nodes) if fake is not None}


def same_sizes(a: Iterable[Size], b: Iterable[Size]) -> bool:
    """Whether two shapes agree for every size that a dynamic dimension may take."""
    a, b = tuple(a), tuple(b)
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(
        statically_known_true(x == y) or _normal(x) == _normal(y) for x, y in pairs
    )


def _normal(size: Size) -> Any:
    """A size with the multiples of each divisor before its quotient.

    ⌊(s − 8)/3⌋ + 1 and ⌊(s − 2)/3⌋ − 1 are ⌊(s + 1)/3⌋ − 2 both, which the tracer does not see.
    """

    def divided(base: Any, divisor: Any) -> Any:
        offset, rest = base.as_coeff_Add()
        if not (offset.is_Integer and divisor.is_Integer):
            return FloorDiv(base, divisor)
        return FloorDiv(rest + offset % divisor, divisor) + offset // divisor

    return size if isinstance(size, int) else size.node.expr.replace(FloorDiv, divided)


def same_type(a: Any, b: Any) -> bool:
    """Whether two nodes hold tensors of provably equal shape, dtype and device."""
    x, y = tensor(a), tensor(b)
    if x is None or y is None or (x.dtype, x.device) != (y.dtype, y.device):
        return False
    return same_sizes(x.shape, y.shape)


def number_dtype(node: Any) -> torch.dtype:
    """The dtype of the numbers among an operator's arguments: float32 where it is no wider."""
    fake = tensor(node)
    return torch.float64 if fake is not None and fake.dtype == torch.float64 else torch.float32


def ints(given: Any, count: int = 1) -> tuple[int, ...]:
    """An argument that is a number, or one for each of `count` dimensions."""
    items = tuple(given) if isinstance(given, list | tuple) else (given,)
    return items * count if len(items) == 1 else items
