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
    result, reference = widen(result), widen(reference)
    finite = reference.isfinite()
    if not (finite.all() and result.isfinite().all()):
        alike = torch.equal(finite, result.isfinite()) and torch.equal(
            result[~finite].nan_to_num(), reference[~finite].nan_to_num()
        )
        return relative_error(result[finite], reference[finite]) if alike else math.inf
    worst, scale = float((result - reference).abs().max()), float(reference.abs().max())
    return worst / scale if scale else worst


def absolute_error(result: Tensor, reference: Tensor) -> float:
    """max |result − reference|, 0 where both are NaN; infinite where shapes differ."""
    if result.shape != reference.shape:
        return math.inf
    result, reference = (
        item.detach().cpu().to(torch.complex128 if item.is_complex() else torch.float64)
        for item in (result, reference)
    )
    same = (result == reference) | (result.isnan() & reference.isnan())
    difference = (result - reference).abs().masked_fill(same, 0.0).nan_to_num(math.inf)
    return float(difference.max()) if difference.numel() else 0.0
