"""file.pt2: a program that torch.export saved."""

from pathlib import Path

import torch

from passfx.errors import SourceError, first_line, quiet
from passfx.files import is_file
from passfx.source.archive import check_archive
from passfx.source.spec import Arguments, Loaded


def load_program(text: str, arguments: Arguments, *, trust_pickle: bool = False) -> Loaded:
    """The program of a file, which takes no arguments; it has its own example inputs.

    Args:
        trust_pickle: load what could run any code.
    """
    path = Path(text)
    if not is_file(path):
        raise SourceError(f"{path} does not exist")
    if not trust_pickle:
        check_archive(path)
    try:
        with quiet():
            return torch.export.load(path), None
    except Exception as error:
        raise SourceError(
            f"{path} holds no program that torch {torch.__version__} can read: {first_line(error)}"
        ) from error
