"""What a file of weights holds, read without running anything that it names.

torch's restricted reader knows tensors and plain containers, and refuses a file for a single
`argparse.Namespace`. Every other class that a file names is read as `Opaque` here, which keeps what
was saved of an object and does nothing with it: no class of the file's own is looked up or called.
"""

import pickle
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from passfx.errors import SourceError, first_line, quiet
from passfx.files import is_file, is_folder
from passfx.source.archive import PROGRAM

SAVE_ADVICE = "save the weights with torch.save(model.state_dict(), ...)"
_ARCHIVE = b"PK\3\4"  # how one begins
_OLDER_PICKLES = 4  # of a file that is none: a magic number, a version, a system, the object


class Opaque:
    """An object of a class that is not looked up; `state` is what was saved of it."""

    state: Any = None

    def __new__(cls, *args: Any) -> "Opaque":
        """Whatever its class was made with is left out."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_module(self) -> bool:
        """Whether a `torch.nn.Module` was saved."""
        return isinstance(self.state, dict) and {"_parameters", "_modules"} <= self.state.keys()

    @property
    def name(self) -> str:
        """Its class: "models.yolo.Model"."""
        return f"{type(self).__module__}.{type(self).__qualname__}"


class _Items:
    """A class of the file's own that its items show to be a mapping."""

    def __new__(cls, *args: Any) -> Any:
        """An empty one, whatever it was made with."""
        return OrderedDict()


class _Sequence:
    """The same for a list."""

    def __new__(cls, *args: Any) -> Any:
        """An empty one, whatever it was made with."""
        return []


def read_checkpoint(path: Path, *, trust_pickle: bool = False) -> Any:
    """What a file of weights holds: tensors, containers and plain values, the rest `Opaque`.

    Args:
        path: .safetensors, or what `torch.save` wrote, under any name.
        trust_pickle: where there are modules in it, or it cannot be read so, load it as Python
            objects, which can run any code.

    Raises:
        SourceError: it cannot be read, or is something else: TorchScript, a program.
    """
    _check(path)
    if path.suffix == ".safetensors" or _is_safetensors(path):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise SourceError(f"{path} is not a safetensors file: {error}") from error
    try:
        found = _read_opaque(path)
    except Exception as error:  # a damaged file makes torch.load raise anything
        if trust_pickle:
            return _read_trusted(path)
        problem = f"cannot be read by torch.load ({type(error).__name__})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            problem = "holds Python objects, and loading those could run any code"
        raise SourceError(f"{path} {problem}; {SAVE_ADVICE}") from error
    return _read_trusted(path) if trust_pickle and any(modules_in(found)) else found


def modules_in(found: Any) -> Iterator[Opaque]:
    """The whole modules that were pickled: the file itself, or values of its mappings."""
    if isinstance(found, Opaque) and found.is_module:
        yield found
    for inner in found.values() if isinstance(found, dict) else ():
        if isinstance(inner, Opaque) and inner.is_module:
            yield inner


def archive_kind(path: Path) -> str | None:
    """ "TorchScript" or "a program of torch.export", where a file is one of them."""
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except (RuntimeError, UnicodeDecodeError):  # damaged, or none
        return None
    if "constants.pkl" in records:
        return "TorchScript"
    return "a program of torch.export" if any(map(PROGRAM.search, records)) else None


def _check(path: Path) -> None:
    if not is_file(path):
        problem = "is a folder; name the file in it" if is_folder(path) else "does not exist"
        raise SourceError(f"the weights file {path} {problem}")
    kind = archive_kind(path)
    if kind == "TorchScript":
        raise SourceError(
            f"{path} is TorchScript, not a state dict; save its weights with "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), ...)"
        )
    if kind is not None:
        raise SourceError(f"{path} holds {kind}, not a state dict; give it as SOURCE, named .pt2")


def _is_safetensors(path: Path) -> bool:
    """Whether it begins like one: the length of a header of JSON, and that header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[4:] == b"\0\0\0\0{"


def _read_trusted(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{path} holds objects of {error.name}, which is not installed; install it, or run "
            "where it can be imported"
        ) from error
    except Exception as error:
        raise SourceError(f"{path} cannot be loaded: {first_line(error)}; {SAVE_ADVICE}") from error


def _read_opaque(path: Path) -> Any:
    """Read it with a stand-in for each class that torch's restricted reader does not know."""
    with quiet():  # what torch may read is one set for the process
        known = torch.serialization.get_safe_globals()
        allowed = {item[1] for item in known if isinstance(item, tuple)}
        allowed |= {f"{item.__module__}.{item.__qualname__}" for item in known
                    if not isinstance(item, tuple)}  # fmt: skip
        allowed |= torch._weights_only_unpickler._get_allowed_globals().keys()
        stands: dict[str, type] = {
            name: _opaque(name) for name in sorted(set(_named(path)) - allowed)
        }
        while True:
            try:
                pairs: list[Any] = [(stand, name) for name, stand in stands.items()]
                with torch.serialization.safe_globals(pairs):
                    return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if not _refined(stands, str(error)):
                    raise


def _refined(stands: dict[str, type], message: str) -> bool:
    """Stand otherwise for the class of which the reader says that its items cannot be set."""
    kind = _Items if "SETITEM" in message else _Sequence if "lists" in message else None
    for name, stand in stands.items():
        if kind is not None and issubclass(stand, Opaque) and f"'{name}'" in message:
            stands[name] = type(name, (kind,), {})
            return True
    return False


def _opaque(name: str) -> type[Opaque]:
    module, _, kind = name.rpartition(".")
    return type(kind, (Opaque,), {"__module__": module})


def _named(path: Path) -> Iterator[str]:
    """The functions and classes that the pickles of a file name, as torch's reader calls them."""
    for file in _pickles(path):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                module, name = NAME_MAPPING.get(
                    (module, name), (IMPORT_MAPPING.get(module, module), name)
                )
                yield f"{module}.{name}"


def _pickles(path: Path) -> Iterator[IO[bytes] | bytes]:
    """The pickles of an archive, or of a file as torch wrote it before 1.6."""
    with path.open("rb") as file:
        if file.read(4) == _ARCHIVE:
            yield torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
            return
        file.seek(0)
        for _ in range(_OLDER_PICKLES):
            yield file
