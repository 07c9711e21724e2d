"""file.pt2: a program that torch.export saved."""

from pathlib import Path

import torch

from passfx.errors import SourceError, first_line
from passfx.source.spec import Arguments, Loaded


def load_program(text: str, arguments: Arguments) -> Loaded:
    """The program of a file, which takes no arguments; it has its own example inputs."""
    path = Path(text)
    if not path.is_file():
        raise SourceError(f"{path} does not exist")
    try:
        return torch.export.load(path), None
    except Exception as error:
        raise SourceError(
            f"{path} is not a program saved with torch.export.save: {first_line(error)}"
        ) from error
