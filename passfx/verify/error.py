"""How far a result is from a reference."""

import math
from typing import Any

import torch
from torch import Tensor

from passfx.graph.evaluate import widen


def relative_error(result: Any, reference: Any) -> float:
    """max |result − reference| / max |reference|; infinite where shapes or infinities differ.

    Of several results, as `split` has them, the largest error.
    """
    if isinstance(reference, list | tuple):
        if len(result) != len(reference):
            return math.inf
        return max(map(relative_error, result, reference), default=0.0)
    reference = torch.as_tensor(reference)
    result = torch.as_tensor(result, device=reference.device)
    if result.shape != reference.shape:
        return math.inf
    if not reference.numel():
        return 0.0
    if not reference.dtype.is_floating_point and not reference.is_complex():
        return float((result != reference).double().mean())
    worst, scale = float(distance(result, reference).max()), float(magnitude(reference).max())
    return worst / scale if scale else worst


def absolute_error(result: Tensor, reference: Tensor) -> float:
    """max |result − reference|, 0 where both are NaN; infinite where shapes differ."""
    if result.shape != reference.shape:
        return math.inf
    difference = distance(result, reference)
    return float(difference.max()) if difference.numel() else 0.0


def distance(result: Tensor, reference: Tensor) -> Tensor:
    """|result − reference| of tensors of one shape, in float64 on the CPU.

    NaN and infinity agree with nothing but themselves: 0 where both are NaN or the same infinity,
    infinite where only one of the two is.
    """
    result, reference = (
        item.detach().cpu().to(torch.complex128 if item.is_complex() else torch.float64)
        for item in (result, reference)
    )
    same = (result == reference) | (result.isnan() & reference.isnan())
    difference = (result - reference).abs().masked_fill(same, 0.0)
    return difference.nan_to_num(math.inf, math.inf)


def magnitude(reference: Tensor) -> Tensor:
    """|reference| in float64 on the CPU; 0 where it is not finite."""
    size: Tensor = widen(reference.cpu()).abs()
    return size.double().nan_to_num(0.0, 0.0)


def channel_axes(rank: int) -> tuple[int, ...]:
    """The axes of a tensor that may be its channels: axis 1 and the last one."""
    return tuple(sorted({min(1, rank - 1), rank - 1})) if rank else ()


def by_channel(values: Tensor, axis: int) -> Tensor:
    """The largest value of each channel, shape [channels]; 0 where a channel is empty."""
    rows = values.movedim(axis, 0).flatten(1) if values.ndim > 1 else values[:, None]
    return rows.amax(1) if rows.shape[1] else values.new_zeros(len(rows))


def underflowed(exact: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Weights of which those elements are rounded to `dtype` that are too small for it.

    Too small is what loses more than a unit in the last place. None where no channel, along any
    axis, would notice: where what is lost is less than the rounding of the channel's largest.
    """
    if not (exact.is_floating_point() and dtype.is_floating_point and exact.numel()):
        return None
    rounded, unit = exact.to(dtype).to(exact.dtype), torch.finfo(dtype).eps
    lost, size = (rounded - exact).abs(), exact.abs()
    small = rounded.isfinite() & (lost > unit * size)
    lost = lost.masked_fill(~small, 0.0)
    if all(
        bool((by_channel(lost, axis) <= unit / 2 * by_channel(size, axis)).all())
        for axis in range(exact.ndim)
    ):
        return None
    return torch.where(small, rounded, exact)
