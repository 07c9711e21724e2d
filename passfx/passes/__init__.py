"""The passes, in the order in which they run."""

from passfx.passes.base import Pass
from passfx.passes.collapse import Collapse
from passfx.passes.compose_clips import ComposeClips
from passfx.passes.fold_constants import FoldConstants
from passfx.passes.fuse_composites import FuseComposites
from passfx.passes.merge_siblings import MergeSiblings
from passfx.passes.move_resampling import MoveResampling
from passfx.passes.norm_before_cat import NormBeforeCat
from passfx.passes.pad_first import PadFirst
from passfx.passes.pool_first import PoolFirst
from passfx.passes.remove_noops import RemoveNoops
from passfx.passes.remove_unused import RemoveUnused
from passfx.passes.share_common import ShareCommon
from passfx.passes.simplify_masks import SimplifyMasks

PASSES: tuple[type[Pass], ...] = (
    RemoveUnused,
    PadFirst,
    FoldConstants,
    RemoveNoops,
    FuseComposites,
    SimplifyMasks,
    PoolFirst,
    MoveResampling,
    NormBeforeCat,
    Collapse,
    ComposeClips,
    ShareCommon,
    MergeSiblings,
)

__all__ = ["PASSES", "Pass"]
