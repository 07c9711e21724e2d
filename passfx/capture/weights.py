"""Whose memory the tensors of a graph module are."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def hold_tensors(module: nn.Module, *, copied: bool) -> None:
    """Give a graph module tensors of its own, which need no gradient, in place of those it reads.

    A parameter stays a parameter, so that `half()` and `to()` convert this module's alone.

    Args:
        copied: into memory of its own, where what shared memory shares it again; else the new
            tensors lie where the old ones do.
    """
    held: dict[int, Tensor] = {}
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for part in module.modules():
            places: tuple[dict[str, Any], ...] = part._parameters, part._buffers, vars(part)
            for tensors in places:
                for name, item in tensors.items():
                    if isinstance(item, Tensor):
                        if id(item) not in held:
                            held[id(item)] = _held(item, memo if copied else None)
                        tensors[name] = held[id(item)]


def _held(item: Tensor, memo: dict[int, Any] | None) -> Tensor:
    data = item.detach()
    if memo is not None:
        data = copy.deepcopy(data, memo)
    return nn.Parameter(data, requires_grad=False) if isinstance(item, nn.Parameter) else data
