"""Attention masks that are known before a run."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passfx.graph.editor import Editor, Match, beside, refuse
from passfx.graph.ops import aten
from passfx.graph.query import arguments, constant, is_call, is_constant
from passfx.graph.shapes import known_tensor
from passfx.passes.base import Found, Pass


class SimplifyMasks(Pass):
    """Drop an attention mask that hides nothing, or say what it hides in a shorter way.

        softmax(q·kᵀ + 0)·v = softmax(q·kᵀ)·v

    A constant boolean mask that is true everywhere goes; one that hides from each position all
    later ones becomes `is_causal`; another one becomes what is added to the products, 0 or −∞. A
    mask that is expanded, to a batch of any size say, counts as what it is expanded from. What a
    boolean mask needs besides, for rows that it hides as a whole, goes with it.

    Kept, or refused:
    1. a mask that depends on an input;
    2. a mask that hides a whole row, which is zero then, and would not be a number.
    """

    name = "simplify-masks"

    def match(self, node: Node) -> Found:
        if not is_call(node, aten.scaled_dot_product_attention):
            return None
        mask: Any = arguments(node)["attn_mask"]
        nodes: tuple[Node, ...] = (node,)
        while is_call(mask, aten.expand):
            mask, nodes = mask.args[0], (mask, *nodes)
        if not is_constant(mask):
            return None
        stored = constant(mask)
        if stored.dtype != torch.bool:
            return None if stored.any() else Match(node, nodes, "the mask adds nothing")
        if stored.all():
            return Match(node, nodes, "the mask hides nothing")
        if not stored.any(-1).all():
            return refuse(node, "the mask hides a whole row, of which softmax would make NaN")
        if _is_causal(stored, node):
            return Match(node, nodes, "the mask hides what comes later", True)
        return Match(node, nodes, "the mask is added", stored, weighed=True)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        node, mask = match.at, match.data
        given: tuple[Any, ...] = node.args[:3]
        if isinstance(mask, Tensor):
            seen = mask if mask.ndim > 1 else mask[None]
            added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
            dtype = known_tensor(node.args[0]).dtype
            given = (*given, editor.constant(added, dtype, beside(node, "attn_mask")))
        elif mask is not None:
            given = (*given, None, 0.0, True)
        kept = {name: item for name, item in node.kwargs.items() if name in ("scale", "enable_gqa")}
        return editor.call(aten.scaled_dot_product_attention.default, *given, **kept)


def _is_causal(mask: Tensor, node: Node) -> bool:
    """Whether a mask is the lower triangle, as large as the products."""
    query, key = (known_tensor(item).shape[-2] for item in node.args[:2])
    if mask.ndim < 2 or mask.shape[-2:] != (query, key) or query != key:
        return False
    lower = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    return torch.equal(mask, lower.expand(mask.shape))
