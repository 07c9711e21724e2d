"""How far two float64 results of one rewrite are apart, channel by channel."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from passfx.verify.error import distance, magnitude, relative_error

_ROUNDING = 1e-14  # of float64 sums of thousands of terms


def channel_error(result: Any, reference: Any, scale: float) -> float:
    """The largest relative error, of the whole and of each slice of it by its own norm.

    Slices are taken along every axis but the first, because which one holds the channels depends on
    the operator: a channel of 1e-10 of the others' values is compared with itself. In a slice, what
    rounding explains counts for nothing, so that values that cancel do not fail.

    Args:
        scale: the largest value that the reference was computed from, which bounds its rounding.
    """
    if isinstance(reference, list | tuple):
        if len(result) != len(reference):
            return math.inf
        pairs = zip(result, reference, strict=True)
        return max((channel_error(*pair, scale) for pair in pairs), default=0.0)
    numeric = isinstance(reference, Tensor) and isinstance(result, Tensor)
    if not numeric or not _is_inexact(reference):
        return relative_error(result, reference)
    if (result.shape, result.dtype) != (reference.shape, reference.dtype):
        return math.inf
    if not reference.numel():
        return 0.0
    difference, size = distance(result, reference), magnitude(reference)
    error = float(difference.max()) / max(scale, float(size.max()), math.ulp(0.0))
    for worst, norm in _slices(difference, size):
        excess = (worst - _ROUNDING * scale).clamp(min=0) / norm
        error = max(error, float(excess.nan_to_num(0.0, math.inf).max()))
    return error


def _slices(difference: Tensor, size: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The largest values of the whole, and of each slice along every axis but the first."""
    yield difference.max(), size.max()
    for axis in range(1, size.ndim):
        rest = [other for other in range(size.ndim) if other != axis]
        yield difference.amax(rest), size.amax(rest)


def largest(values: Iterable[Any]) -> float:
    """The largest finite absolute value among floating tensors; 0 where there is none."""
    found = 0.0
    for item in values:
        if isinstance(item, list | tuple):
            found = max(found, largest(item))
        elif isinstance(item, Tensor) and item.numel() and _is_inexact(item):
            size = item.abs()
            found = max(found, float(size.masked_fill(~size.isfinite(), 0).max()))
    return found


def _is_inexact(item: Tensor) -> bool:
    return item.is_floating_point() or item.is_complex()
