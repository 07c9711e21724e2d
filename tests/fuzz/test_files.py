"""Damaged files end in one sentence, whatever is damaged."""

from pathlib import Path

import pytest

from tests.fuzz import files


@pytest.mark.parametrize("count", [350, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_mutated_files(tmp_path: Path, count: int) -> None:
    findings = files.run(count, tmp_path)
    assert findings.raw == []
    assert sum(findings.counts.values()) == count
    for kind in files.KINDS:
        assert findings.counts[kind, "read"]
        assert findings.counts[kind, "refused"]
