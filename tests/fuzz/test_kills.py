"""A killed conversion leaves the old file or the new one, and nothing after the next run."""

from pathlib import Path

import pytest

from passfx.export import onnx as export
from tests.fuzz import kills


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.fuzz)])
def test_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(export, "_INLINE_BYTES", kills.INLINE_BYTES)
    found = kills.check(count, tmp_path)
    assert found["killed"] + found["finished before"] == count
    assert found["old file"]
    assert found["new file"]
    assert found["with leftovers"]
