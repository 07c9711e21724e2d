"""Borders that hold a bias."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.nn import functional

from passfx.analysis.forms import compose
from passfx.analysis.leaves import forms
from passfx.graph.editor import Editor, Match, refuse
from passfx.graph.evaluate import evaluate
from passfx.graph.ops import CONVS, PADS, aten
from passfx.graph.query import arguments, is_call, reached, value
from passfx.graph.shapes import fixed, hint, known_tensor
from passfx.passes.base import Found, Pass
from passfx.verify.certificate import CERTIFICATE_TOLERANCE
from passfx.verify.error import relative_error

_END = sys.maxsize  # of a slice without one


@dataclass(frozen=True)
class _Border:
    """Layers that read each position alone, first to last, and the amounts padded after them."""

    layers: tuple[Node, ...]
    amounts: list[int]


class PadFirst(Pass):
    """Write a border that holds the bias of the layers before it as zero padding of their input.

    1×1 convolutions, norms and scales are y = W·x + b at each position, so they give b where x is
    zero. A result padded with b, one value or one per channel, is therefore theirs for the padded
    input, and `collapse` takes the padding in. This is the border of the Diverse Branch Block (Ding
    et al., 2021), also where it is written by assigning to the four sides of a zero pad.

    Kept, or refused:
    1. a border that is not their bias, or that differs from it by more than float64 rounding;
    2. sides of a size that varies which are assigned to beyond the padding, or with values that
       depend on that size;
    3. a padded result that nothing affine reads, or layers whose result is read elsewhere too;
    4. a border of the channels or of the batch.
    """

    name = "pad-first"

    def match(self, node: Node) -> Found:
        pad = node
        while is_call(pad, aten.slice_scatter):
            pad = pad.all_input_nodes[0]
        if not is_call(pad, *PADS):
            return None
        bound = arguments(pad)
        y, rank = bound["self"], known_tensor(bound["self"]).ndim - 2
        written = any(is_call(user, aten.slice_scatter) for user in node.users)
        if bound.get("mode", "constant") != "constant" or written or any(bound["pad"][2 * rank :]):
            return None
        if pad is node and not bound["value"]:
            return None
        layers, bias = _layers(y)
        if not layers or not any(is_call(user, *CONVS) or any(forms(user)) for user in node.users):
            return None
        border = _between(y, node)
        if border is None:
            return None
        if not all(_fits(item, bound["pad"]) for item in border):
            return refuse(node, "its sides are assigned to where that depends on a dynamic size")
        value = bias.reshape(-1, *(1,) * rank)
        error = _border_error(y, node, border, bound["pad"], value)
        if error > CERTIFICATE_TOLERANCE:
            last = layers[-1].name
            return refuse(node, f"its border differs from the bias of {last} by {error:.1e}")
        nodes = tuple(sorted({*layers, *border}))
        what = f"the border of {layers[-1].name} as padding of {layers[0].name}"
        return Match(node, nodes, what, _Border(layers, bound["pad"]), any_size=pad is node)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        border: _Border = match.data
        before = forms(border.layers[0])[0].source
        result = editor.call(aten.constant_pad_nd.default, before, border.amounts, 0.0)
        for layer in border.layers:
            before, result = layer, editor.again(layer, {before: result})
        return result


def _layers(last: Node) -> tuple[tuple[Node, ...], Tensor]:
    """The layers up to `last` that read each position alone, and what they give for zeros."""
    rank = known_tensor(last).ndim - 2
    layers: list[Node] = []
    form, at = None, last
    while not layers or len(at.users) == 1:
        found = (item for item in forms(at) if item.rank == rank and rank)
        step = next((item for item in found if item.geometry.is_local), None)
        if step is None:
            break
        form = step if form is None else compose(step, form)
        layers.insert(0, at)
        at = step.source
    if len(last.users) > 1 or form is None:
        return (), torch.zeros(0)
    return tuple(layers), form.build().bias


def _between(source: Node, node: Node) -> tuple[Node, ...] | None:
    """What computes `node` from `source`, constants and sizes; None if something else does too."""
    found = reached(
        node, lambda item: {read for read in item.all_input_nodes if not _is_size(read)} - {source}
    )
    varying = (item for item in found if is_call(item, *PADS, aten.slice_scatter))
    escapes = any(user not in found for item in varying if item is not node for user in item.users)
    others = any(item.op not in ("call_function", "get_attr") for item in found)
    return None if escapes or others else tuple(found)


def _is_size(node: Any) -> bool:
    return isinstance(value(node), SymInt)


def _fits(node: Node, amounts: list[int]) -> bool:
    """Whether an operator does the same for every value of the sizes that vary.

    A constant may be expanded to them; a slice of an axis that varies must be the whole of it, or
    lie in what is padded at one of its ends.
    """
    if not is_call(node, aten.slice, aten.slice_scatter):
        return is_call(node, aten.expand) or not any(map(_is_size, node.all_input_nodes))
    bound = arguments(node)
    shape, axis = known_tensor(node.args[0]).shape, bound["dim"]
    if fixed(shape[axis]) is not None:
        return not any(map(_is_size, node.all_input_nodes))
    before = 2 * (len(shape) - 1 - axis % len(shape))
    low, high = amounts[before : before + 2] or (0, 0)
    start, end = bound["start"] or 0, _END if bound["end"] is None else bound["end"]
    if bound["step"] != 1 or _is_size(start) or (_is_size(end) and value(end) is not shape[axis]):
        return False
    to_end = end == _END or _is_size(end)
    return (
        (start == 0 and to_end)
        or (start >= 0 and 0 <= end <= low)
        or (-high <= start < 0 and to_end)
    )


def _border_error(
    source: Node, node: Node, between: tuple[Node, ...], amounts: list[int], bias: Tensor
) -> float:
    """How far the border that is written around zeros differs from the bias."""
    zeros = torch.zeros([*map(hint, known_tensor(source).shape)], dtype=torch.float64)
    values: dict[Node, Any] = {source: zeros}
    reads = {read for item in between for read in item.all_input_nodes}
    values |= {read: hint(value(read)) for read in reads if _is_size(read)}
    evaluate(between, values)
    return relative_error(values[node], functional.pad(zeros - bias, amounts) + bias)
