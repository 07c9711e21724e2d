"""Pools before maps of the channels."""

from torch.fx import Node

from passfx.analysis.channels import ChannelMap, channel_map, is_layer, resampling
from passfx.graph.editor import Editor, Match, refuse
from passfx.graph.ops import ADAPTIVE_POOLS, aten
from passfx.graph.query import is_call
from passfx.graph.shapes import elements, known_tensor, same_sizes
from passfx.passes.base import Found, Pass


class PoolFirst(Pass):
    """Pool first, then apply the map of each channel, to the smaller tensor.

        pool(scale·x + shift) = scale·pool(x) + shift

    A pool mixes positions of one channel with weights that add up to 1, so it commutes with a norm
    in eval mode and with arithmetic by a constant a channel or one number. There the map has less
    to read, and a linear head takes it in: pooling to [batch, channels, 1, 1] and the reshape to
    [batch, channels] are passed together. Interpolation to a smaller size counts as a pool.

    Kept, or refused:
    1. a map that folds into the layer before it;
    2. a map that others read too;
    3. a shift before a pool whose weights do not add up to 1, which the pool would have weighed;
    4. a pool that makes no less of it, and one over the batch or the channels.
    """

    name = "pool-first"

    def match(self, node: Node) -> Found:
        pooled = node.all_input_nodes[0] if _is_flattening(node) else node
        found = resampling(pooled)
        affine = channel_map(found.source) if found else None
        if found is None or affine is None or any(map(_is_flattening, node.users)):
            return None
        profile = self.target.profile
        now, then = (affine.seconds(elements(item), profile) for item in (affine.node, node))
        if then >= now or _folds_back(affine):
            return None
        others = [user.name for user in affine.node.users if user is not pooled]
        if others:
            return refuse(node, f"{affine.node.name} is also read by {', '.join(others)}")
        if affine.is_biased and not found.is_average:
            return refuse(node, f"a shift would not pass through: {found.leak}")
        figures = f"{then * 1e6:.1f} µs instead of {now * 1e6:.1f} µs"
        what = f"{pooled.name} before {affine.node.name}: {figures}"
        nodes = (affine.node, *dict.fromkeys((pooled, node)))
        whole = is_call(pooled, *ADAPTIVE_POOLS, aten.mean)
        return Match(node, nodes, what, affine, any_size=whole or pooled is node)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        affine: ChannelMap = match.data
        result, old = affine.source, affine.node
        for node in match.nodes[1:]:
            result, old = editor.again(node, {old: result}), node
        before, after = known_tensor(affine.node), known_tensor(result)
        new = {affine.source: result}
        if before.ndim != after.ndim:
            for read, exact in affine.operands(after.ndim).items():
                new[read] = editor.constant(exact, before.dtype, str(read.target))
        return editor.again(affine.node, new)


def _is_flattening(node: Node) -> bool:
    """Whether a node makes [batch, channels] of a [batch, channels, 1, …] that it alone reads."""
    if not is_call(node, aten.reshape, aten.view, aten.flatten):
        return False
    source = node.all_input_nodes[0]
    out, given = known_tensor(node).shape, known_tensor(source).shape
    flat = same_sizes((*out, *(1,) * (len(given) - 2)), given)
    return len(out) == 2 < len(given) and flat and len(source.users) == 1


def _folds_back(affine: ChannelMap) -> bool:
    """Whether the map, with those before it, folds into a layer."""
    source = affine.source
    while len(source.users) == 1 and (above := channel_map(source)):
        source = above.source
    return is_layer(source) and len(source.users) == 1
