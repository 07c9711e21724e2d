"""The samples from which the ranges of half precision are taken."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
from torch import Tensor

from passfx.capture.program import Captured
from passfx.errors import SourceError, first_line
from passfx.export.arrays import Array, to_numpy
from passfx.graph.query import tensors
from passfx.verify.parity import draw_samples


def calibration_samples(
    captured: Captured, names: Sequence[str], path: str | PathLike[str] | None = None, seed: int = 0
) -> list[dict[str, Array]]:
    """Inputs by name: the user's own, or the example inputs and random ones like them.

    Args:
        names: of the inputs of the file, in order.
        path: an .npz file with an array for each of them, samples along its first axis; they are
            taken in batches of the example's size.

    Raises:
        SourceError: the file cannot be read, or an array does not fit its input.
    """
    if path is None:
        samples = draw_samples(captured, seed, ends=False)
        drawn = [map(to_numpy, tensors(flat)) for flat in samples]
        return [dict(zip(names, arrays, strict=True)) for arrays in drawn]
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: np.asarray(found[name]) for name in found.files}
    except Exception as error:  # a damaged file makes the readers raise anything
        raise SourceError(f"{path} is not an .npz file of arrays: {first_line(error)}") from error
    if set(arrays) != set(names):
        raise SourceError(
            f"{path} has the arrays {', '.join(sorted(arrays))}; the inputs are {', '.join(names)}"
        )
    examples = zip(names, tensors(captured.flat_inputs), strict=True)
    batches = [_batches(path, name, arrays[name], example) for name, example in examples]
    if len(set(map(len, batches))) != 1:
        raise SourceError(f"{path} has more samples of one input than of another")
    return [dict(zip(names, batch, strict=True)) for batch in zip(*batches, strict=True)]


def _batches(path: str | PathLike[str], name: str, array: Array, example: Tensor) -> list[Array]:
    if array.dtype.kind not in "biuf":
        raise SourceError(f"{path}: the array {name} holds {array.dtype.name}, no numbers")
    converted = array.astype(to_numpy(example).dtype)
    if not example.ndim:
        return [converted]
    size, *rest = example.shape
    if array.ndim != example.ndim or list(array.shape[1:]) != rest or len(array) < size:
        wanted = "x".join(map(str, ("N", *rest)))
        raise SourceError(
            f"{path}: the array {name} is {'x'.join(map(str, array.shape)) or 'a scalar'}; "
            f"it must be {wanted} with N at least {size}"
        )
    return [converted[start : start + size] for start in range(0, len(array) - size + 1, size)]
