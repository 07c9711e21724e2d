"""Clips y = min(max(x, low), high), the form of relu, relu6, hardtanh and clamp."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Clip:
    """The bounds of a clip; an absent bound is infinite. `high` wins where `low` exceeds it."""

    low: float = -inf
    high: float = inf

    def __call__(self, x: float) -> float:
        """The clip of a number."""
        return min(max(x, self.low), self.high)

    def then(self, after: "Clip") -> "Clip":
        """The clip equal to `self` first and `after` second.

        Clips are monotone and the identity between their bounds, so the composition is again a
        clip, with the images of the first one's bounds: low = after(low), high = after(high).
        """
        return Clip(after(self.low), after(self.high))
