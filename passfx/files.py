"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passfx.errors import ExportError


def check_writable(path: Path) -> None:
    """Refuse a place where no file can be.

    Raises:
        ExportError: it is a folder, or its own folder does not exist or cannot be written to.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder; give the name of the file to write")
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"nothing can be written into the folder {path.parent}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk or a folder without permission is no bug.

    Raises:
        ExportError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        ExportError: a full disk, or no permission.
    """
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".passfx-") as folder:
        written = Path(folder) / path.name
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)
