"""Interpolation and 1×1 convolutions, in the cheaper order."""

from torch.fx import Node

from passfx.analysis.commute import Exchange, exchange, interpolation, rebound
from passfx.graph.editor import Editor, Match
from passfx.passes.base import Found, Pass


class MoveUpsamples(Pass):
    """Interpolate after a 1×1 convolution, or before it, whichever is predicted to take less time.

        W·upsample(x) + b = upsample(W·x + b)

    W mixes the channels of one position, an interpolation mixes positions of one channel with
    weights that add up to 1, at the borders too. Before an interpolation that enlarges, the
    convolution has fewer positions; after one that shrinks, likewise. A norm right after the
    convolution moves with it. Holds for nearest, nearest-exact, linear, bilinear, trilinear and
    bicubic interpolation, corners aligned or not, antialiased or not.

    Kept, or refused:
    1. an order that is predicted to be slower, with the figures where it would take fewer MACs;
    2. a value between the two that others read too;
    3. convolutions with a stride, padding, a larger kernel or computed weights.
    """

    name = "move-upsamples"

    def match(self, node: Node) -> Found:
        return exchange(node, interpolation, self.target.profile)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        found: Exchange = match.data
        upsample, layer = (found.resampling.node,), found.layer.nodes
        result = found.layer.source if found.resamples_first else found.resampling.source
        for node in (*upsample, *layer) if found.resamples_first else (*layer, *upsample):
            target, args, kwargs = rebound(node, {})
            result = editor.call(target, result, *args[1:], **kwargs)
        return result
