"""The samples from which the ranges of half precision are taken."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from passfx.capture.program import Captured
from passfx.errors import SourceError
from passfx.export.arrays import Array, to_numpy
from passfx.verify.parity import draw_samples

_LOADS = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def calibration_samples(
    captured: Captured, names: Sequence[str], path: Path | None = None, seed: int = 0
) -> list[dict[str, Array]]:
    """Inputs by name: the user's own, or the example inputs and random ones like them.

    Args:
        names: of the inputs of the file, in order.
        path: an .npz file with an array for each of them, samples along its first axis; they are
            taken in batches of the example's size.

    Raises:
        SourceError: the file cannot be read, or an array does not fit its input.
    """
    examples = [item for item in captured.flat_inputs if isinstance(item, Tensor)]
    if path is None:
        drawn = draw_samples(captured, seed)
        tensors = [[item for item in flat if isinstance(item, Tensor)] for flat in drawn]
        return [dict(zip(names, map(to_numpy, flat), strict=True)) for flat in tensors]
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except _LOADS as error:
        raise SourceError(f"{path} is not an .npz file of arrays: {error}") from error
    if set(arrays) != set(names):
        raise SourceError(
            f"{path} has the arrays {', '.join(sorted(arrays))}; the inputs are {', '.join(names)}"
        )
    batches = [
        _batches(path, name, arrays[name], example)
        for name, example in zip(names, examples, strict=True)
    ]
    if len({len(found) for found in batches}) != 1:
        raise SourceError(f"{path} has more samples of one input than of another")
    return [dict(zip(names, arrays, strict=True)) for arrays in zip(*batches, strict=True)]


def _batches(path: Path, name: str, array: Array, example: Tensor) -> list[Array]:
    if not example.ndim:
        return [array.astype(to_numpy(example).dtype)]
    size, rest = example.shape[0], tuple(example.shape[1:])
    if array.ndim != example.ndim or array.shape[1:] != rest or len(array) < size:
        wanted = "x".join(map(str, ("N", *rest)))
        raise SourceError(
            f"{path}: the array {name} is {'x'.join(map(str, array.shape)) or 'a scalar'}; "
            f"it must be {wanted} with N at least {size}"
        )
    array = array.astype(to_numpy(example).dtype)
    return [array[start : start + size] for start in range(0, len(array) - size + 1, size)]
