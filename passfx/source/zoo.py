"""What the collections of models have in common."""

import difflib
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from passfx.errors import SourceError, first_line
from passfx.source.call import call


def build(function: Callable[[], Any], what: str) -> Any:
    """Build a zoo's model; its warnings are for those who wrote it."""
    with warnings.catch_warnings(action="ignore"):
        return call(function, what)


def zoo(name: str) -> Any:
    """The package, or a SourceError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SourceError(f"{name} is not installed: pip install 'passfx[zoo]'") from error
    except Exception as error:
        raise SourceError(
            f"{name} does not import: {first_line(error)}; "
            "torch and torchvision must be builds of one release, from one index"
        ) from error


def unknown(zoo: str, name: str, known: Sequence[str]) -> SourceError:
    """The error of a name that a zoo does not have."""
    close = ", ".join(difflib.get_close_matches(name, known, 3))
    hint = f"; did you mean {close}?" if close else ""
    return SourceError(f"{zoo} has no model {name!r}{hint}")
