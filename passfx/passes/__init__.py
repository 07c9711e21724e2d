"""The passes, in the order in which they run."""

from passfx.passes.base import Pass
from passfx.passes.collapse import Collapse
from passfx.passes.compose_clips import ComposeClips
from passfx.passes.fold_constants import FoldConstants
from passfx.passes.fold_norms import FoldNorms
from passfx.passes.remove_noops import RemoveNoops
from passfx.passes.remove_unused import RemoveUnused
from passfx.passes.share_common import ShareCommon

PASSES: tuple[type[Pass], ...] = (
    RemoveUnused,
    FoldConstants,
    RemoveNoops,
    FoldNorms,
    Collapse,
    ComposeClips,
    ShareCommon,
)

__all__ = ["PASSES", "Pass"]
