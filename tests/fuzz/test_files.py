"""Damaged files end in one sentence, whatever is damaged."""

import pytest

from tests.fuzz import files
from tests.fuzz.fresh import run_fresh


@pytest.mark.parametrize("count", [350, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_mutated_files(count: int) -> None:
    printed = run_fresh("tests.fuzz.files", count)
    assert f"{count} mutated files, 0 raw errors" in printed
    for kind in files.KINDS:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{kind} ")]
        assert "read" in line
        assert "refused" in line
