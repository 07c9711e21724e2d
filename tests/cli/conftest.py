"""A folder to work in, with a source file, and a way to call the command line in-process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import passfx
from passfx.cli import main
from tests.cli.net import NET, Invoke
from tests.helpers import clean_imports


@pytest.fixture(autouse=True)
def _clean_imports(tmp_path: Path) -> Iterator[None]:
    with clean_imports(tmp_path):
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds `net.py` and an empty folder `out`."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `net.py:build`, made once."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text(NET)
    with clean_imports(folder):
        passfx.convert(f"{folder / 'net.py'}:build", folder / "net.onnx")
    return folder / "net.onnx"


@pytest.fixture
def invoke() -> Invoke:
    """Call `passfx` with arguments; an exception that it does not handle fails the test."""

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(main, arguments, prog_name="passfx")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    return call
