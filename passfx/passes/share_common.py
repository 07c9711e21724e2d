"""Duplicate constants and common subexpressions."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from passfx.graph.editor import Editor, Match
from passfx.graph.query import constant, is_constant, is_pure
from passfx.passes.base import Found, Pass


class ShareCommon(Pass):
    """Compute an expression once where it is written twice, and store equal constants once.

    Two operators are the same if target and arguments are, numbers compared with their types
    (`1` and `1.0` promote differently); two constants if shape, dtype and every bit agree. Random
    operators are never shared.
    """

    name = "share-common"

    def matches(self, graph: Graph) -> Iterator[Found]:
        first: dict[Any, list[Node]] = {}
        for node in graph.nodes:
            if node.op not in ("get_attr", "call_function") or not is_pure(node):
                continue
            earlier = first.setdefault(_key(node), [])
            twin = next((item for item in earlier if _equal(item, node)), None)
            if twin is None:
                earlier.append(node)
            else:
                what = "a constant" if is_constant(node) else "an expression"
                yield Match(node, (twin, node), f"{what} equal to {twin.name}", twin)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        twin: Node = match.data
        return twin


def _key(node: Node) -> Any:
    if not is_constant(node):
        return node.op, node.target, _freeze(node.args), _freeze(node.kwargs)
    tensor = constant(node)
    flat = tensor.reshape(-1)
    probes = flat[:: max(1, flat.numel() // 4)][:4]
    return tensor.dtype, tuple(tensor.shape), tuple(map(repr, probes.tolist()))


def _freeze(item: Any) -> Any:
    if isinstance(item, dict):
        return tuple((key, _freeze(inner)) for key, inner in sorted(item.items()))
    if isinstance(item, list | tuple):
        return tuple(map(_freeze, item))
    return type(item), repr(item) if isinstance(item, float) else item


def _equal(a: Node, b: Node) -> bool:
    if not is_constant(a) or a.target == b.target:
        return True
    return torch.equal(*(constant(x).contiguous().flatten().view(torch.uint8) for x in (a, b)))
