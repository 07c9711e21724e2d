"""A killed conversion leaves the old file or the new one, and nothing after the next run."""

import pytest

from tests.fuzz.fresh import run_fresh


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.fuzz)])
def test_kills(count: int) -> None:
    printed = run_fresh("tests.fuzz.kills", count)
    assert f"{count} kills, no partial file, no leftovers after the next run" in printed
    assert all(found in printed for found in ("killed", "old file", "new file", "with leftovers"))
