"""The passes over a written file, in the order in which they run."""

from passfx.export.base import FilePass
from passfx.export.epilogue import FuseEpilogues
from passfx.export.precision import LowerPrecision

FILE_PASSES: tuple[type[FilePass], ...] = (LowerPrecision, FuseEpilogues)
