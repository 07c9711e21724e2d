"""What must hold for the sizes of the inputs so that a captured graph is the model."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, cast

Origin = Literal["declared", "model", "traced", "program", "empty"]

_REASONS: dict[str, str] = {
    "declared": "as declared with dynamic_shapes",
    "model": "because the model itself takes no others",
    "traced": "because the graph follows the way that the example took",
    "program": "because the exported program takes no others",
    "empty": "because the graph was captured with a tensor that is not empty",
}
_TORCH = SimpleNamespace(sym_max=max, sym_min=min, sym_float=float)
_BOX = 512  # sizes up to here decide how the rule of one size is said


@dataclass(frozen=True, order=True)
class Place:
    """A size that varies: an axis of a flat input, or an input that is a whole number."""

    index: int
    input: str
    axis: int | None = None

    def __str__(self) -> str:
        return self.input if self.axis is None else f"axis {self.axis} of {self.input}"

    @property
    def label(self) -> str:
        """What formulas call it: "x_2"."""
        return self.input if self.axis is None else f"{self.input}_{self.axis}"

    def read(self, flat: Sequence[Any]) -> int:
        """The size that flat inputs have."""
        item = flat[self.index]
        return int(item) if self.axis is None else int(item.shape[self.axis])


@dataclass(frozen=True)
class SizeRule:
    """A condition on the sizes of the inputs.

    Attributes:
        places: what it is about; messages name the first one.
        condition: a Python function of their sizes, as text.
        text: what the first one must be: "at most 99", "equal to axis 0 of y".
        origin: "declared" by the user; a need of the "model", which fails on other sizes itself;
            "traced": the model takes other sizes, but the graph follows the example; "program": a
            need of the exported program that was given; "empty": an axis without elements.
        line: of the user's code, where it is known.
    """

    places: tuple[Place, ...]
    condition: str
    text: str
    origin: Origin
    line: str | None = None

    def holds(self, size: Callable[[Place], int]) -> bool:
        """Whether sizes obey the rule."""
        return satisfied(self.condition, map(size, self.places))

    def check(self, flat: Sequence[Any]) -> None:
        """Raise ValueError, in one sentence, where flat inputs break the rule."""
        if not self.holds(lambda place: place.read(flat)):
            place = self.places[0]
            what = "is" if place.axis is None else f"has on axis {place.axis} the size"
            raise ValueError(
                f"input {place.input} {what} {place.read(flat)}; it must be {self.text}, "
                f"{self.reason}"
            )

    def __str__(self) -> str:
        """The rule in one line: "axis 2 of x must be at most 99, because …"."""
        return f"{self.places[0]} must be {self.text}, {self.reason}"

    @property
    def reason(self) -> str:
        """Why the rule is there, and the line that made it, if it is known."""
        return _REASONS[self.origin] + (f" ({self.line})" if self.line else "")

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        place = self.places[0]
        told = {"rule": self.text, "origin": self.origin, "line": self.line}
        return {"input": place.input, "axis": place.axis, **told}


def satisfied(condition: str, sizes: Iterable[int]) -> bool:
    """Whether sizes fulfil a condition; one that divides by zero is not fulfilled."""
    try:
        return bool(compiled(condition)(*sizes))
    except (ZeroDivisionError, ValueError):
        return False


@cache
def compiled(condition: str) -> Callable[..., Any]:
    """A function from its text."""
    names = {"max": max, "min": min, "math": math, "torch": _TORCH, "__builtins__": {}}
    return cast(Callable[..., Any], eval(condition, names))


def condition_of(formula: str, count: int) -> str:
    """The text of a function of the sizes of some places, which a formula calls p0, p1, …"""
    return f"lambda {', '.join(f'p{number}' for number in range(count))}: {formula}"


def said(formula: str, places: Sequence[Place]) -> str:
    """What a formula says about the first place, for people; the places are its p0, p1, …"""
    if formula == "p0 == p1":
        return f"equal to {places[1]}"
    written = re.sub(r"\bp(\d+)\b", lambda match: places[int(match[1])].label, formula)
    return _said_of_one(formula) or f"such that {written.replace('torch.sym_', '')}"


def _said_of_one(formula: str) -> str | None:
    """The sizes that one place may have, where they are the multiples of a number in a range."""
    if set(re.findall(r"\bp\d+\b", formula)) != {"p0"}:
        return None
    numbers = [int(number) for number in re.findall(r"\b\d+\b", formula)]
    last = max([_BOX, *(2 * number for number in numbers)])
    if last > _BOX**2:
        return None
    condition = condition_of(formula, 1)
    taken = [size for size in range(1, last + 1) if satisfied(condition, [size])]
    if len(taken) < 2:
        return f"exactly {taken[0]}" if taken else None
    first, end, step = taken[0], taken[-1], taken[1] - taken[0]
    if len(taken) == last - 1 and end == last and first == 1:
        return f"other than {min(set(range(1, last)) - set(taken))}"
    if taken != list(range(first, end + 1, step)):
        return None
    parts, rest = [], first % step
    if step > 1:
        of = {(2, 0): "even", (2, 1): "odd"}.get((step, rest), f"a multiple of {step}")
        parts.append(f"{of} plus {rest}" if rest and step > 2 else of)
    if first > step or len(taken) == last:
        parts.append(f"at least {first}")
    if end <= last - step:
        parts.append(f"at most {end}")
    return " and ".join(parts)


def has_traced(rules: Iterable[SizeRule]) -> bool:
    """Whether a graph is wrong at sizes that its model takes."""
    return any(rule.origin == "traced" for rule in rules)
