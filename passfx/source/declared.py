"""Input shapes that a file has and its source does not declare."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from passfx.graph.query import dtype_name, tensors
from passfx.record import TensorInfo
from passfx.source.inputs import InputShape

Given = tuple[Sequence[Any], Mapping[str, Any]]


def shapes_of_file(infos: Sequence[TensorInfo], declared: Given | None) -> list[InputShape]:
    """The shapes to draw inputs of, one for each input of the file.

    A size that the file leaves open is the declared one; where there is none, a batch is 1.

    Returns:
        Nothing where what is declared fits the file, or where a size is not known.
    """
    own = [] if declared is None else tensors(pytree.tree_leaves(declared))
    if own and len(own) != len(infos):
        return []
    found = []
    for number, info in enumerate(infos):
        sizes: Sequence[int | str] = info.shape
        known = tuple(own[number].shape) if own else (1, *sizes[1:])
        if len(known) != len(sizes) or info.dtype != "float32" or not sizes:
            return []
        filled = [
            size if isinstance(size, int) else other
            for size, other in zip(sizes, known, strict=True)
        ]
        numbers = tuple(size for size in filled if isinstance(size, int))
        if len(numbers) != len(filled):
            return []
        found.append(InputShape(None, numbers))
    fits = own and all(
        (tuple(x.shape), dtype_name(x.dtype)) == (shape.sizes, "float32")
        for x, shape in zip(own, found, strict=True)
    )
    return [] if fits else found
