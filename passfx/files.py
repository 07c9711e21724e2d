"""Writing files whole or not at all, and over nothing that is read or is no file."""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from passfx.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows has no such lock; there the age decides what was left behind
    fcntl = None  # type: ignore[assignment]

# A folder of a run that writes: its process, and what makes it unique.
_STAGED = re.compile(r"\.passfx-\d+-[a-z0-9_]{8}")
_ABANDONED_SECONDS = 24 * 3600  # after which a folder without a lock is nobody's
_JOURNAL = ".journal"  # which files beside the written one its move may leave without a reader


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that the system does not take is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """The same for a folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_writable(path: Path) -> None:
    """Refuse a place where no file can be written whole.

    Raises:
        ExportError: it is a folder or another thing that is no file (a device, a pipe), or its own
            folder does not exist or cannot be written to.
    """
    with writing(path):
        _resolved(path)
        place = _place(path)
        if place.is_dir():
            raise ExportError(f"{path} is a folder; give the name of the file to write")
        if place.exists() and not place.is_file():
            raise ExportError(f"{path} is a device or a pipe; give the name of a file to write")
        if not place.parent.is_dir():
            raise ExportError(f"the folder {place.parent} does not exist; create it first")
        if not os.access(place.parent, os.W_OK):
            raise ExportError(f"nothing can be written into the folder {place.parent}")


def check_apart(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Refuse to write two things into one file, or over a file that is read.

    Args:
        written, read: what each file is, as a sentence names it ("the report") → its place.

    Raises:
        ExportError: two names, links or not, lead to one file.
    """
    outputs = {what: path for what, path in written.items() if path is not None}
    inputs = {what: path for what, path in read.items() if path is not None}
    seen: dict[str, Path] = {}
    for what, path in outputs.items():
        for other, place in {**inputs, **seen}.items():
            if _is_same(path, place):
                raise ExportError(f"{what} and {other} are the same file, {path}; give another one")
        seen[what] = path


def _is_same(path: Path, other: Path) -> bool:
    with writing(path):
        same = os.path.normcase(_resolved(path)) == os.path.normcase(_resolved(other))
        return same or (path.exists() and other.exists() and path.samefile(other))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a folder without permission or a name that cannot be is no bug.

    Raises:
        ExportError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"{_short(path)} cannot be written: {reason}") from error


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-50:]}"


def _place(path: Path) -> Path:
    """Where a write lands: a link is followed, so that it stays a link."""
    return _resolved(path) if path.is_symlink() else path


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle; a NUL in the name
        raise OSError(None, str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        ExportError: a full disk, no permission, or no place for a file.
    """
    check_writable(path)
    with writing(path), replacing(path) as written:
        written.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and move it there if the block succeeds.

    Its data (files that `data_name` named) moves first. The name says what the data holds, so at no
    moment is a file joined with the data of another; what only the replaced file read then goes.

    Yields:
        The file to write, under its own name in a folder of its own.
    """
    place = _place(path)
    with staging(place.parent) as folder:
        written = folder / place.name
        yield written
        check_writable(path)
        data = _data_names(folder, place.name)
        journal = [place.name, *data, *_data_names(place.parent, place.name)]
        (folder / _JOURNAL).write_text("\0".join(journal), encoding="utf-8")
        try:
            for name in data:
                os.replace(folder / name, place.with_name(name))
            os.replace(written, place)
        finally:
            _retire(folder)


def data_name(name: str, digest: str) -> str:
    """Of the weights that lie beside a file: "model.onnx.0123456789ab.data"."""
    return f"{name}.{digest[:12]}.data"


def _data_names(folder: Path, name: str) -> list[str]:
    """The data of a file that is in a folder, as far as the file there reads it."""
    named = re.compile(re.escape(name) + r"\.[0-9a-f]{12}\.data")
    found = [item.name for item in folder.iterdir() if named.fullmatch(item.name)]
    return [data for data in found if _reads(folder / name, data)]


def _reads(file: Path, data: str) -> bool:
    """Whether a file holds the name of its data; one whose data lies beside it is small."""
    return file.is_file() and data.encode() in file.read_bytes()


def _retire(folder: Path) -> None:
    """Delete the data of a move, finished or not, that the file in place does not read."""
    with contextlib.suppress(OSError, ValueError):
        name, *data = (folder / _JOURNAL).read_text(encoding="utf-8").split("\0")
        named = re.compile(re.escape(name) + r"\.[0-9a-f]{12}\.data")
        for item in data:
            # A journal that others wrote names nothing else.
            if named.fullmatch(item) and "/" not in item and not _reads(folder.parent / name, item):
                (folder.parent / item).unlink(missing_ok=True)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A folder of this run within another; what killed runs left there goes first."""
    for left in parent.glob(".passfx-*"):
        if _STAGED.fullmatch(left.name):
            with contextlib.suppress(OSError):
                _sweep(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".passfx-{os.getpid()}-", dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another run swept it before it was locked
            lock = _lock(folder, wait=True)
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _sweep(left: Path) -> None:
    """Finish the move of a run that is no more, and delete its folder."""
    is_old = time.time() - left.stat().st_mtime > _ABANDONED_SECONDS
    lock = _lock(left, wait=False)
    try:
        if lock is not None or is_old:
            _retire(left)
            shutil.rmtree(left)
    finally:
        _unlock(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """Hold a folder for as long as this process lives; None where the system has no such lock.

    Raises:
        FileNotFoundError: it is gone.
        BlockingIOError: another process holds it, and we do not wait.
    """
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
        raise FileNotFoundError(folder)
    except OSError as error:
        os.close(lock)
        if isinstance(error, FileNotFoundError | BlockingIOError):
            raise
        return None


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
