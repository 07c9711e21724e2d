"""Duplicate constants and common subexpressions."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
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
        probes = {node: _probes(node) for node in filter(is_constant, graph.nodes)}
        alike = Counter(probes.values())
        first: dict[Any, Node] = {}
        for node in graph.nodes:
            if node in probes:
                # Few constants have the probes of another, so that few are read as a whole.
                is_read = alike[probes[node]] > 1
                key = (*probes[node], _digest(constant(node)) if is_read else None)
            elif node.op in ("get_attr", "call_function") and is_pure(node):
                key = node.op, node.target, _freeze(node.args), _freeze(node.kwargs)
            else:
                continue
            twin = first.setdefault(key, node)
            if twin is not node:
                what = "a constant" if node in probes else "an expression"
                yield Match(node, (twin, node), f"{what} equal to {twin.name}", twin)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        twin: Node = match.data
        return twin


def _probes(node: Node) -> tuple[Any, ...]:
    """What equal constants have in common: dtype, shape, some elements."""
    tensor = constant(node)
    flat = tensor.reshape(-1)
    probes = flat[:: max(1, flat.numel() // 4)][:4]
    return tensor.dtype, tuple(tensor.shape), tuple(map(repr, probes.tolist()))


def _digest(tensor: Tensor) -> bytes:
    """Of every bit."""
    return sha256(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().data).digest()


def _freeze(item: Any) -> Any:
    if isinstance(item, dict):
        return tuple((key, _freeze(inner)) for key, inner in sorted(item.items()))
    if isinstance(item, list | tuple):
        return tuple(map(_freeze, item))
    return type(item), repr(item) if isinstance(item, float) else item
