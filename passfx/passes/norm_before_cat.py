"""Norms of concatenated channels into what computes the parts."""

from collections.abc import Iterator
from itertools import accumulate, pairwise

from torch.fx import Node

from passfx.analysis.channels import ChannelMap, absorbs, channel_map, is_layer
from passfx.analysis.leaves import forms
from passfx.graph.editor import Editor, Match, refuse
from passfx.graph.ops import aten
from passfx.graph.query import arguments, is_call
from passfx.graph.shapes import elements, known_tensor
from passfx.passes.base import Found, Pass


class NormBeforeCat(Pass):
    """Apply a map of each channel to the parts of a concatenation, where their layers take it in.

        scale·cat(x1, x2, …) + shift = cat(scale1·x1 + shift1, scale2·x2 + shift2, …)

    A norm in eval mode, or arithmetic by a constant a channel or one number, maps each channel
    alone, so each part can have its slice of it. A part that comes from a layer, a norm or an
    average pool, and goes nowhere else, takes its slice in for nothing; one other may keep a map of
    its own, which reads and writes the same bytes.

    Kept, or refused:
    1. maps of their own that are predicted to take longer than the one, or are more of them, with
       the figures;
    2. a concatenation that others read too;
    3. a map that folds into the layer after it;
    4. concatenations along another axis, of dynamic sizes, of mixed types, or with a part twice.
    """

    name = "norm-before-cat"

    def match(self, node: Node) -> Found:
        affine = channel_map(node)
        slices = dict(_slices(affine.source)) if affine else {}
        own = [part for part in slices if len(part.users) > 1 or not absorbs(part)]
        if affine is None or len(own) == len(slices) or _folds_forward(affine):
            return None
        others = [user.name for user in affine.source.users if user is not node]
        if others:
            return refuse(node, f"{affine.source.name} is also read by {', '.join(others)}")
        profile, total = self.target.profile, elements(node)
        now = affine.seconds(total, profile)
        then = sum(affine.seconds(elements(p), profile, elements(p) / total) for p in own)
        figures = f"{then * 1e6:.1f} µs instead of {now * 1e6:.1f} µs"
        taken = f"{len(slices) - len(own)} of the {len(slices)} parts take {node.name} in"
        if then >= now or len(own) > 1:
            return refuse(node, f"only {taken}, the others would need maps of their own: {figures}")
        return Match(node, (affine.source, node), f"{taken}: {figures}", affine)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        affine: ChannelMap = match.data
        parts = []
        for part, channels in _slices(affine.source):
            fake, new = known_tensor(part), {affine.source: part}
            for read, exact in affine.operands(fake.ndim, channels).items():
                new[read] = editor.constant(exact, fake.dtype, str(read.target))
            parts.append(editor.again(affine.node, new))
        return editor.call(aten.cat.default, parts, 1)


def _slices(cat: Node) -> Iterator[tuple[Node, slice]]:
    """The parts of a concatenation of channels, and which channels they are."""
    if not is_call(cat, aten.cat):
        return
    parts, dim = arguments(cat).values()
    out, fakes = known_tensor(cat), [*map(known_tensor, parts)]
    if dim % out.ndim != 1 or len({*parts}) < len(parts):
        return
    counts = [fake.shape[1] for fake in fakes if (fake.ndim, fake.dtype) == (out.ndim, out.dtype)]
    if len(counts) == len(parts) and all(isinstance(count, int) for count in counts):
        ends = pairwise(accumulate(counts, initial=0))
        yield from ((part, slice(*end)) for part, end in zip(parts, ends, strict=True))


def _folds_forward(affine: ChannelMap) -> bool:
    """Whether the map folds into the one layer that reads it; a shift does not through padding."""
    readers = list(affine.node.users)
    if len(readers) != 1 or not is_layer(readers[0]) or readers[0].args[0] is not affine.node:
        return False
    axes = [axis for form in forms(readers[0]) for axis in form.geometry.axes]
    return not affine.is_biased or all(axis.low <= 0 and axis.high <= 0 for axis in axes)
