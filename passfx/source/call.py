"""Running the user's code: its exceptions become one sentence."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from passfx.errors import SourceError, first_line


def call(function: Callable[[], Any], what: str) -> Any:
    """Run the user's code; its exceptions become one sentence with their place."""
    try:
        return function()
    except SourceError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {first_line(error)}{_place(error)}"
        raise SourceError(message) from error


def _place(error: BaseException) -> str:
    """ " (file.py:12)", the innermost line that belongs neither to torch, to Python nor to us."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})" if error.filename else ""
    others = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
