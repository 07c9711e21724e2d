"""Affine regions into fewer, cheaper operators."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from passfx.algebra.conv import Conv
from passfx.analysis.candidates import Candidate
from passfx.analysis.regions import cheapest_cover
from passfx.graph.editor import Editor, Match, beside, refuse
from passfx.graph.ops import CONVS, LAYERS, TRANSPOSED_CONVS, aten
from passfx.graph.query import is_call, op_name
from passfx.graph.shapes import fixed, known_tensor
from passfx.passes.base import Found, Pass

_Attach = Callable[[str, Tensor], Node]


class Collapse(Pass):
    """Collapse every affine region into the operators that take the least predicted time.

    Convolutions, linear layers, norms in eval mode, scales, biases, average pools, pads, crops,
    space-to-depth, and sums and stacks of them are one algebra: each is y = W·x + b with a kernel,
    a stride and a padding, of zeros or of reflected, replicated or circular values. Chains are
    composed and branches of one input are added or stacked, wherever that is exact for the sizes at
    hand and predicted to be faster on the target: conv + norm, RepVGG and MobileOne branches, skip
    paths, LayerScale, pad + conv. A norm that several layers read goes into all of them, if each
    can take it. A composition that costs more than its parts, such as depthwise then pointwise, is
    left apart. What a region crops is a slice before it, never taps that multiply zeros. A scale
    lets the zeros of a border through, so before a padded layer only its shift stays:

        scale·x + shift = scale·(x + shift/scale)

    Kept, or refused:
    1. a value that is read outside its region, or is an output of the model, stays;
    2. after padding that reads zeros where the operator before, past the border, has values;
    3. a bias that would leak over a zero border;
    4. a collapse that is predicted to be slower, with the figures;
    5. norms on the statistics of the batch, pools that count no padding or round sizes up,
       constants of another dtype, and weights that are computed in the graph are not affine;
    6. a transposed convolution composes with maps of its channels alone;
    7. what only moves, scales or negates becomes no layer.
    """

    name = "collapse"

    def matches(self, graph: Graph) -> Iterator[Found]:
        cover = cheapest_cover(graph, self.target.profile)
        for node, reason in cover.refused:
            yield refuse(node, reason)
        for candidate in cover.chosen:
            nodes = tuple(sorted(candidate.span))
            what = f"{', '.join(map(op_name, nodes))} as one operator"
            any_size = candidate.holds_at_any_size
            yield Match(candidate.node, nodes, what, candidate, any_size, True)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        candidate: Candidate = match.data
        form, fake = candidate.written, known_tensor(match.at)
        source, conv = form.source, form.build().uncut().regroup().normalized()
        place = next((item for item in match.nodes if is_call(item, *LAYERS)), match.at)

        def attach(name: str, exact: Tensor) -> Node:
            return editor.constant(exact, fake.dtype, beside(place, name))

        if candidate.first is not None:
            exact = candidate.first.build()
            shift = (exact.bias / exact.weight.flatten()).reshape(-1, *(1,) * form.rank)
            source = editor.call(aten.add.Tensor, source, attach("shift", shift))
        for dim, axis in enumerate(form.geometry.axes, 2):
            if axis.is_cropped and not conv.transposed:
                ends = max(0, -axis.low), axis.high if axis.high < 0 else sys.maxsize
                source = editor.call(aten.slice.Tensor, source, dim, *ends)
        if conv.geometry.is_pointwise:
            result = _emit_pointwise(editor, attach, conv, source)
        elif conv.axes:
            result = _emit_conv(editor, attach, conv, source)
        else:
            weight = attach("weight", conv.densify().weight)
            result = editor.call(aten.linear.default, source, weight, _bias(attach, conv))
        if candidate.is_reshaped:
            sizes = [-1 if size is None else size for size in map(fixed, fake.shape)]
            result = editor.call(aten.reshape.default, result, sizes)
        return result


def _bias(attach: _Attach, conv: Conv) -> Node | None:
    return attach("bias", conv.bias) if bool(conv.bias.any()) else None


def _emit_conv(editor: Editor, attach: _Attach, conv: Conv, source: Node) -> Node:
    """A convolution, after a pad for what its own padding cannot do."""
    stride, dilation = ([getattr(a, name) for a in conv.axes] for name in ("stride", "dilation"))
    exact = conv.transposed_weight() if conv.transposed else conv.weight
    weight, bias = attach("weight", exact), _bias(attach, conv)
    zeros, number = conv.border == "zeros", len(conv.axes) - 1
    if conv.transposed:
        padding, extra = [a.low for a in conv.axes], [a.low - a.high for a in conv.axes]
        # The one overload that takes numbers: `default` in one dimension, `input` in more.
        packet: Any = TRANSPOSED_CONVS[number]
        overload = getattr(packet, "input" if "input" in packet.overloads() else "default")
        options = stride, padding, extra, conv.groups, dilation
        return editor.call(overload, source, weight, bias, *options)
    padding = [min(axis.low, axis.high) if zeros else 0 for axis in conv.axes]
    if conv.geometry.is_padded_apart:
        sides = zip(conv.axes[::-1], padding[::-1], strict=True)
        amounts = [side - pad for axis, pad in sides for side in (axis.low, axis.high)]
        packet, value = (aten.constant_pad_nd, 0.0) if zeros else (aten.pad, conv.border)
        source = editor.call(packet.default, source, amounts, value)
    convolve = CONVS[number].default
    return editor.call(convolve, source, weight, bias, stride, padding, dilation, conv.groups)


def _emit_pointwise(editor: Editor, attach: _Attach, conv: Conv, source: Node) -> Node:
    """A per-channel map: nothing, a product, a sum, or a norm that is both."""
    scale, shift = conv.weight.reshape(-1), conv.bias
    shape = (-1, *(1,) * len(conv.axes))
    scaled, shifted = bool((scale != 1).any()), bool(shift.any())
    if scaled and shifted and (conv.axes or known_tensor(source).ndim == 2):
        values = (scale, shift, torch.zeros_like(scale), torch.ones_like(scale))
        names = ("weight", "bias", "running_mean", "running_var")
        nodes = map(attach, names, values)
        return editor.call(aten.batch_norm.default, source, *nodes, False, 0.0, 0.0, False)
    if scaled:
        source = editor.call(aten.mul.Tensor, source, attach("scale", scale.reshape(shape)))
    if shifted:
        source = editor.call(aten.add.Tensor, source, attach("shift", shift.reshape(shape)))
    return source
