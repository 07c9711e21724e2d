"""Input shapes that a file has and its source does not declare."""

from typing import Any

import pytest
import torch

from passfx.record import TensorInfo
from passfx.source.declared import shapes_of_file
from passfx.source.inputs import InputShape


def info(*shape: int | str, dtype: str = "float32") -> TensorInfo:
    return TensorInfo("x", dtype, shape)


IMAGE = ((torch.randn(1, 3, 6, 7),), {})


@pytest.mark.parametrize(
    ("infos", "declared", "found"),
    [
        ([info(1, 3, 6, 7)], IMAGE, None),
        ([info("batch", 3, 6, 7)], IMAGE, None),
        ([info(1, 3, 8, 8)], IMAGE, [(1, 3, 8, 8)]),
        ([info("batch", 3, 8, "?")], IMAGE, [(1, 3, 8, 7)]),
        ([info(2, 3, 8, 8)], None, [(2, 3, 8, 8)]),
        ([info("batch", 3, 8, 8)], None, [(1, 3, 8, 8)]),
        ([info(1, 3, "height", 8)], None, None),
        ([info(1, 8, dtype="int64")], None, None),
        ([info(1, 3, 6, 7)] * 2, IMAGE, None),
        ([info(3, 6)], IMAGE, None),
        ([info()], None, None),
    ],
)
def test_shapes(infos: list[TensorInfo], declared: Any, found: list[tuple[int, ...]]) -> None:
    wanted = [InputShape(None, sizes) for sizes in found or []]
    assert shapes_of_file(infos, declared) == wanted
