"""A file of factories, and what it imports undone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import clean_imports
from tests.source.nets import FILE


@pytest.fixture(autouse=True)
def _clean_imports(tmp_path: Path) -> Iterator[None]:
    with clean_imports(tmp_path):
        yield


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FILE + "\ndef example_inputs():\n    return torch.randn(1, 3, 6, 7)\n")
    return path
