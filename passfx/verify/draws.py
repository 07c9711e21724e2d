"""The sizes that a rewrite is proven at: several small ones, whatever the image's is.

An axis is free if it counts samples or positions, not channels: the first one, and those after the
channels, or, where the channels are last, those between. The free axes of several inputs belong
together: one that is twice as long as another stays so, with the same remainder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import SymInt, Tensor

from passfx.graph.shapes import example, hint

LONG = 23  # positions, so that a fault from row 20 on shows
MANY = 8  # samples, so that a fault from sample 6 on shows
_SIDE = 16  # what surrounds a position is as large, or long in one direction only
_UNKNOWN = 2  # what a size that depends on data is
_RATIO = 8  # beyond it, the sizes of two inputs have nothing to do with each other

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """Sizes to try.

    Attributes:
        batch: of the first axis; None as captured.
        sizes: of the other free axes, of the input where they are smallest; None as captured.
    """

    batch: int | None
    sizes: Shape | None

    def alternatives(self) -> Iterator["Draw"]:
        """The draw, then the next larger ones, for operators that do not take it."""
        given = self.sizes or ()
        square = (max(given, default=1),) * len(given)
        pairs = product((given, square), (1, 2, 4, 8))
        tried = (tuple(-(-n // multiple) * multiple for n in sizes) for sizes, multiple in pairs)
        for sizes in dict.fromkeys(tried):
            yield from (Draw(self.batch, sizes), Draw(None, sizes))


def draws(rank: int, least: int, reach: int, step: int) -> list[Draw]:
    """The sizes that an edit is proven at besides the smallest, in `rank` axes after the first.

    Few draws of few positions: large weights cost a pass over memory each. One is long in one
    direction and has an inside in the others; each of the rest is long in another and all border.

    Args:
        least: the smallest size that its operators take.
        reach: the size at which a position has around it all that its operators read.
        step: how many positions of the input one of the result stands for.
    """
    if not rank:
        return [Draw(1, ())]
    side, long = max(least, min(reach, _SIDE)) + 1, max(LONG * step, reach)
    thin = [[least] * at + [long + at] + [least] * (rank - at - 1) for at in range(1, rank)]
    found = [[long] + [side] * (rank - 1), *(thin or [[side]])]
    return [Draw(1, tuple(sizes)) for sizes in found]


@dataclass(frozen=True)
class Layout:
    """Which axes of some inputs are free, and whether sizes that the graph fixes are.

    Attributes:
        inputs: the captured values of the inputs.
        last: whether the channels are the last axis, not the second.
        fixed_too: whether fixed sizes may change too, or dynamic ones alone.
    """

    inputs: Sequence[Any]
    last: bool
    fixed_too: bool = True

    def role(self, axis: int, ndim: int) -> int | None:
        """0 for the first axis, then the number of a free one; None for the channels."""
        free = range(1, ndim - 1) if self.last else range(2, ndim)
        return 0 if axis == 0 else 1 + free.index(axis) if axis in free else None

    @cached_property
    def sizes(self) -> list[tuple[Any, int]]:
        """The sizes that may change, and the roles of their axes."""
        found = (
            (size, self.role(axis, fake.ndim))
            for fake in tensors_in(self.inputs)
            for axis, size in enumerate(fake.shape)
        )
        return [
            (size, role)
            for size, role in found
            if role is not None and (self.fixed_too or isinstance(size, SymInt))
        ]

    @property
    def rank(self) -> int:
        """The number of free axes besides the first."""
        return max((role for _, role in self.sizes), default=0)

    def at(self, draw: Draw) -> "Sizes":
        """The new sizes of a draw."""
        numbers = enumerate((draw.batch, *(draw.sizes or ())))
        wanted = {role: number for role, number in numbers if number is not None}
        symbols, base = dict[Any, int](), dict[int, int]()
        for size, role in self.sizes:
            if role not in wanted:
                continue
            if isinstance(size, SymInt):
                for symbol in size.node.expr.free_symbols:
                    symbols.setdefault(symbol, _within(size, symbol, wanted[role]))
            elif size > 1 or role == 0:
                known = base.get(role, 1)
                base[role] = max(size, known) if 1 in (size, known) else min(size, known)
        return Sizes(self, wanted, base, symbols)


@dataclass(frozen=True)
class Sizes:
    """The new sizes of all inputs.

    Attributes:
        wanted: the new size of an axis, by its role, where it is smallest.
        base: its captured size there; of 1 only where all are.
        symbols: the values of dynamic sizes.
    """

    layout: Layout
    wanted: dict[int, int]
    base: dict[int, int]
    symbols: dict[Any, int]

    def number(self, size: Any, role: int | None = None) -> int:
        """A size, or a dynamic number that is an input.

        Sizes of one axis are linked as strides and padding link them: one about r times as long
        as another shrinks by r where that shrinks by 1.
        """
        if isinstance(size, SymInt):
            expression = size.node.expr
            known = {
                symbol: self.symbols.get(symbol, example(size, symbol, _UNKNOWN))
                for symbol in expression.free_symbols
            }
            return int(expression.subs(known))
        base = self.base.get(role, 0) if role is not None and self.layout.fixed_too else 0
        if not base or role is None or size == 1 < base:
            return int(size)
        ratio = round(size / base)
        return int(size if ratio > _RATIO else size + ratio * (self.wanted[role] - base))

    @property
    def is_single(self) -> bool:
        """Whether one sample stands for several, which operators may repeat to fit a constant."""
        return self.wanted.get(0) == 1 < self.base.get(0, 1)

    def break_a_rule(self) -> bool:
        """Whether the graph was captured for other values of its dynamic sizes than these."""
        if not self.symbols:
            return False
        dynamic = next(size for size, _ in self.layout.sizes if isinstance(size, SymInt))
        environment: Any = dynamic.node.shape_env
        guards = (guard.expr for guard in environment.guards)
        inside = (guard for guard in guards if guard.free_symbols <= self.symbols.keys())
        return any(guard.subs(self.symbols) == False for guard in inside)  # noqa: E712

    def shape(self, fake: Tensor) -> Shape:
        """The shape of an input; a size below 1 is for the caller to refuse."""
        roles = (self.layout.role(axis, fake.ndim) for axis in range(fake.ndim))
        return tuple(map(self.number, fake.shape, roles))


def tensors_in(inputs: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among values and lists of them."""
    for item in inputs:
        if isinstance(item, list | tuple):
            yield from tensors_in(item)
        elif isinstance(item, Tensor):
            yield item


def _within(size: SymInt, symbol: Any, wanted: int) -> int:
    """The value of a symbol in its range that makes a size about as large as is wanted."""
    own = example(size, symbol, _UNKNOWN)
    number = wanted * max(1, round(own / max(1, hint(size))))
    environment: Any = size.node.shape_env
    bounds = environment.var_to_range.get(symbol)
    if bounds is None:
        return number
    number = number if number >= bounds.lower else int(bounds.lower)
    return number if number <= bounds.upper else int(bounds.upper)
