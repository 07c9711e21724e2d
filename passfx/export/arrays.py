"""Torch tensors as numpy arrays, and back; bfloat16 as ml_dtypes has it."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def to_numpy(tensor: Tensor) -> Array:
    """The values of a tensor, where it allows that without a copy."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: Any, *, copy: bool = True) -> Tensor:
    """A tensor with a copy of the values, or the values themselves where torch can read them.

    Raises:
        TypeError: torch has no such dtype.
    """
    array = np.asarray(array)
    if copy or not (array.flags.c_contiguous and array.flags.writeable):
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
