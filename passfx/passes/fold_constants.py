"""Constant folding."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from passfx.analysis.cost import node_seconds
from passfx.analysis.growth import Addition, too_large
from passfx.graph.editor import Editor, Match, beside, refuse
from passfx.graph.evaluate import evaluate
from passfx.graph.query import arguments, is_call, is_constant, is_pure, reached, tensor
from passfx.graph.shapes import elements, known_tensor, nbytes
from passfx.passes.base import Found, Pass
from passfx.verify.error import relative_error


class FoldConstants(Pass):
    """Compute what depends on constants alone, once, in float64, and keep the result.

    Weight-normalised, spectrally normalised and weight-standardised convolutions become plain ones,
    position tables and masks become tensors. One rewrite computes a whole constant expression, so
    that it is rounded once.

    Kept, or refused:
    1. random operators are never folded;
    2. an expression whose result would make the file larger by more than its gain, such as an
       expanded token or the transpose of a shared weight; where it is a constant in another dtype
       or order, such as an 8-bit weight, it gains nothing, because a runtime can compute it when
       it loads the file;
    3. an expression whose result differs between float32 and float64 by more than rounding means
       something by its precision.
    """

    name = "fold-constants"

    def matches(self, graph: Graph) -> Iterator[Found]:
        fixed: set[Node] = set()
        for node in graph.nodes:
            is_pure_call = node.op == "call_function" and is_pure(node)
            if is_constant(node) or (is_pure_call and fixed.issuperset(node.all_input_nodes)):
                fixed.add(node)
        found = [
            node
            for node in graph.nodes
            if node in fixed and not is_constant(node) and tensor(node) is not None
            if not fixed.issuperset(node.users)
        ]
        made = frozenset(found)
        refused = too_large(self._addition(node, made) for node in found)
        reasons = {item.at: reason for item, reason in refused.items()}
        for node in found:
            yield refuse(node, reasons[node]) if node in reasons else self.match(node)

    def _addition(self, node: Node, made: frozenset[Node]) -> Addition:
        """What a constant adds, and saves beside those that are made of its expression before."""

        def step(item: Node) -> Iterable[Node]:
            return () if item in made and item is not node else item.all_input_nodes

        nodes = reached(node, step)
        calls = [item for item in nodes if item is node or not (is_constant(item) or item in made)]
        read = (elements(item) for item in set(nodes).difference(calls))
        is_new = elements(node) > max(read, default=0)
        timed = (item for item in calls if tensor(item) is not None)
        saved = sum(node_seconds(item, self.target.profile) for item in timed) if is_new else 0.0
        return Addition(node, calls, nbytes(node), saved, made.intersection(nodes))

    def match(self, node: Node) -> Found:
        nodes = _expression(node)
        values, native = dict[Node, Any](), dict[Node, Any]()
        evaluate(nodes, values)
        evaluate(nodes, native, double=False)
        if not _agree(values[node], native[node]):
            return refuse(node, "its value depends on the precision that it is computed in")
        calls = [item for item in nodes if not is_constant(item)]
        what = f"{len(calls)} operators on constants"
        return Match(node, nodes, what, values[node], weighed=True)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        return editor.constant(match.data, known_tensor(match.at).dtype, _name(match.at))


def _expression(node: Node) -> tuple[Node, ...]:
    """A node and all that it is computed from."""
    return tuple(reached(node, lambda item: item.all_input_nodes))


def _agree(wide: Tensor, native: Tensor) -> bool:
    if not native.dtype.is_floating_point:
        return torch.equal(wide.to(native.dtype), native)
    tolerance: float = torch.finfo(native.dtype).eps ** 0.5
    return relative_error(native, wide) <= tolerance


def _name(node: Node) -> str:
    """The name that the first user knows the value by: "conv1.weight"; else the node's own."""
    user = next(iter(node.users))
    given = arguments(user) if is_call(user) else {}
    name = next((name for name, item in given.items() if item is node), node.name)
    return beside(user, node.name if name in ("input", "self", "other") else name)
