"""file.py:factory and package.module:factory."""

import difflib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import torch

from passfx.errors import SourceError, some
from passfx.files import is_file
from passfx.source.call import call
from passfx.source.spec import FORMS, Arguments, Loaded
from passfx.source.zoo import suggestions


def factory_model(text: str, arguments: Arguments) -> Loaded:
    """What the factory returns, and the function `example_inputs` beside it, if there is one."""
    place, _, name = text.rpartition(":")
    if place.endswith(".py"):
        module = import_file(Path(place))
    elif is_file(Path(f"{place}.py")) and "/" in place:
        raise SourceError(f"{place!r} is no module to import; did you mean {place}.py:{name}?")
    else:
        module = import_module(place, _in_zoos(name))
    factory = getattr(module, name, None)
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise SourceError(f"{text} is a module, not a factory: it takes no --arg")
        return factory, getattr(module, "example_inputs", None)
    if not callable(factory):
        known = factories(module)
        near = difflib.get_close_matches(name, known, 3)
        has = f"; it has {some(near or known)}" if known else ""
        hint = has if near else _in_zoos(name) or has
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


def is_factory(text: str) -> bool:
    """Whether it names a place and something in it."""
    place, _, name = text.rpartition(":")
    return bool(place) and name.isidentifier()


def factories(module: ModuleType) -> list[str]:
    """The modules, classes of modules and functions that a file defines, in their order."""
    return [
        name
        for name, item in vars(module).items()
        if isinstance(item, torch.nn.Module)
        or (getattr(item, "__module__", None) == module.__name__ and _makes_module(item))
        if not name.startswith("_") and name != "example_inputs"
    ]


def _makes_module(item: object) -> bool:
    is_class = inspect.isclass(item) and issubclass(item, torch.nn.Module)
    return is_class or inspect.isfunction(item)


def _in_zoos(name: str) -> str:
    meant = suggestions(name, exact=True)
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


def import_file(path: Path) -> ModuleType:
    """The module of a file, run as an import runs it.

    Raises:
        SourceError: there is none, or it raises.
    """
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


def import_module(name: str, hint: str = "") -> ModuleType:
    """The module of a dotted name.

    Raises:
        SourceError: there is none, or it raises.
    """
    if not is_module(name):
        raise SourceError(
            f"there is no module {name!r} to import{hint or f'; a source is {FORMS}'}"
        )
    module: ModuleType = call(lambda: importlib.import_module(name), f"importing {name}")
    return module


def is_module(name: str) -> bool:
    """Whether there is a module of a dotted name, here or installed."""
    _allow_imports_from(Path.cwd())
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _allow_imports_from(folder: Path) -> None:
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
