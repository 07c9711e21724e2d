"""Clip composition."""

from math import inf

from torch.fx import Node

from passfx.algebra.clip import Clip
from passfx.graph.editor import Editor, Match
from passfx.graph.ops import CLIPS, aten
from passfx.graph.query import arguments, is_call
from passfx.graph.shapes import known_tensor, same_type
from passfx.passes.base import Found, Pass


class ComposeClips(Pass):
    """Replace a clip of a clip by one clip.

    relu, relu6, hardtanh and clamp with numeric bounds are y = min(max(x, low), high). Applied
    one after the other they are the clip from after(low) to after(high), exactly: relu(relu(x)) is
    relu(x), and clamp(relu(x), max=6) is clamp(x, 0, 6).

    Kept:
    1. a first clip that others read too, unless the second one changes nothing;
    2. clips of integers, and clips that change the dtype.
    """

    name = "compose-clips"

    def match(self, node: Node) -> Found:
        second = _clip(node)
        inner = node.all_input_nodes[0] if second else None
        first = _clip(inner)
        if second is None or first is None or inner is None:
            return None
        clip = first.then(second)
        if clip != first and len(inner.users) > 1:
            return None
        what = f"{inner.name} then {node.name} is one clip to [{clip.low:g}, {clip.high:g}]"
        return Match(node, (inner, node), what, clip)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        inner, clip = match.nodes[0], match.data
        if clip == _clip(inner):
            return inner
        if clip == Clip(0.0):
            return editor.call(aten.relu.default, inner.args[0])
        low = None if clip.low == -inf else clip.low
        high = None if clip.high == inf else clip.high
        return editor.call(aten.clamp.default, inner.args[0], low, high)


def _clip(node: object) -> Clip | None:
    """The clip that a node computes; None for anything else."""
    if not isinstance(node, Node) or not is_call(node, *CLIPS):
        return None
    if not known_tensor(node).is_floating_point() or not same_type(node, node.args[0]):
        return None
    if is_call(node, aten.relu, aten.relu6):
        return Clip(0.0, inf if is_call(node, aten.relu) else 6.0)
    bound = arguments(node)
    low = bound.get("min", bound.get("min_val"))
    high = bound.get("max", bound.get("max_val"))
    if not all(item is None or isinstance(item, int | float) for item in (low, high)):
        return None
    return Clip(-inf if low is None else float(low), inf if high is None else float(high))
