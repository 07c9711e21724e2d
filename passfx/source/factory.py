"""file.py:factory and package.module:factory."""

import difflib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import torch

from passfx.errors import SourceError
from passfx.files import is_file
from passfx.source.call import call
from passfx.source.spec import FORMS, Arguments, Loaded
from passfx.source.weights import some


def factory_model(text: str, arguments: Arguments) -> Loaded:
    """What the factory returns, and the function `example_inputs` beside it, if there is one."""
    place, _, name = text.rpartition(":")
    if not place or not name or "/" in name:
        raise SourceError(f"{text!r} is not a source: give {FORMS}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, name, None)
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise SourceError(f"{text} is a module, not a factory: it takes no --arg")
        return factory, getattr(module, "example_inputs", None)
    if not callable(factory):
        known = [
            key
            for key, item in vars(module).items()
            if callable(item) and getattr(item, "__module__", None) == module.__name__
        ]
        close = difflib.get_close_matches(name, known, 3) or known
        hint = f"; it has {some(close)}" if known else ""
        raise SourceError(f"{place} has no factory {name!r}{hint}")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(map(str, inspect.signature(factory).parameters.values())) or "nothing"
        raise SourceError(
            f"{text}: {error}; it takes {takes}, each given as --arg key=value"
        ) from error
    model = call(lambda: factory(**arguments), text)
    if not isinstance(model, torch.nn.Module):
        raise SourceError(f"{text} returned {type(model).__name__}, not a torch.nn.Module")
    return model, getattr(module, "example_inputs", None)


def _import_file(path: Path) -> ModuleType:
    if not is_file(path):
        raise SourceError(f"the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _allow_imports_from(path.parent)
    sys.modules.setdefault(path.stem, module)  # so that its dataclasses and pickles find it
    loader = spec.loader
    call(lambda: loader.exec_module(module), f"importing {path}")
    return module


def _import_module(name: str) -> ModuleType:
    _allow_imports_from(Path.cwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise SourceError(f"there is no module {name!r} to import; a source is {FORMS}")
    module: ModuleType = call(lambda: importlib.import_module(name), f"importing {name}")
    return module


def _allow_imports_from(folder: Path) -> None:
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
