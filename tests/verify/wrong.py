"""Passes that are wrong on purpose: another operator in the place of some, a fold that is off."""

import math
from collections.abc import Callable
from typing import Any

from torch import ops
from torch.fx import Node

from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv
from passfx.algebra.geometry import Axis
from passfx.graph.editor import Editor, Match
from passfx.graph.query import arguments, constant, is_call
from passfx.passes import Pass

aten = ops.aten
Build = Callable[[Editor, Match], Node]


class Replace(Pass):
    """Replaces a pair of operators, or one, by whatever `build` makes of it."""

    name = "replace"

    def __init__(self, targets: tuple[Any, ...], build: Build) -> None:
        self.targets = targets
        self.build = build

    def match(self, node: Node) -> Match | None:
        nodes = [node]
        for _ in self.targets[1:]:
            (before,) = [read for read in nodes[0].all_input_nodes if is_call(read)] or [None]
            if before is None:
                return None
            nodes.insert(0, before)
        fits = all(is_call(*pair) for pair in zip(nodes, self.targets, strict=True))
        return Match(node, tuple(nodes), "replaced") if fits else None

    def rewrite(self, editor: Editor, match: Match) -> Node:
        return self.build(editor, match)


def fold(change: Callable[[ChannelAffine, dict[str, Any]], ChannelAffine]) -> Replace:
    """The fold of a batch norm into a convolution, with the norm's map changed."""

    def build(editor: Editor, match: Match) -> Node:
        convolution, norm = map(arguments, match.nodes)
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = [constant(norm[name]) for name in names]
        after = change(ChannelAffine.batch_norm(*parameters, norm["eps"]), norm)
        weight, bias = (constant(convolution[name]).double() for name in ("weight", "bias"))
        folded = Conv(weight, bias, (Axis(3, 1, 1, 1),) * 2).scaled(after)
        for name, exact in (("weight", folded.weight), ("bias", folded.bias)):
            dtype = constant(convolution[name]).dtype
            convolution[name] = editor.constant(exact, dtype, name)
        return editor.call(aten.conv2d.default, *convolution.values())

    return Replace((aten.conv2d, aten.batch_norm), build)


def unchanged(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return after


def wrong_eps(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    names = ("weight", "bias", "running_mean", "running_var")
    return ChannelAffine.batch_norm(*(constant(norm[name]) for name in names), 1.1 * norm["eps"])


def wrong_order(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale.roll(1), after.shift)


def wrong_sign(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale, -after.shift)


def rounded(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale.float().double(), after.shift)


def not_a_number(after: ChannelAffine, norm: dict[str, Any]) -> ChannelAffine:
    return ChannelAffine(after.scale * math.nan, after.shift)
