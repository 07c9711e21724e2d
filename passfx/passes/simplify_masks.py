"""Attention masks that are known before a run."""

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
        mask = _unexpanded(arguments(node)["attn_mask"])
        if not isinstance(mask, Node) or not is_constant(mask):
            return None
        stored = constant(mask)
        if stored.dtype != torch.bool:
            is_zero = not bool(stored.any())
            return Match(node, (node,), "the mask adds nothing", None) if is_zero else None
        if bool(stored.all()):
            return Match(node, (node,), "the mask hides nothing", None)
        if not bool(stored.any(-1).all()):
            return refuse(node, "the mask hides a whole row, of which softmax would make NaN")
        if _is_causal(stored, node):
            return Match(node, (node,), "the mask hides what comes later", True)
        return Match(node, (node,), "the mask is added", stored, weighed=True)

    def rewrite(self, editor: Editor, match: Match) -> Node:
        bound = arguments(match.at)
        query, key, value = (bound[name] for name in ("query", "key", "value"))
        mask, kept = None, {name: bound[name] for name in ("scale", "enable_gqa")}
        if isinstance(match.data, Tensor):
            dtype = known_tensor(query).dtype
            seen = match.data if match.data.ndim > 1 else match.data[None]
            added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
            mask = editor.constant(added, dtype, beside(match.at, "attn_mask"))
        target = aten.scaled_dot_product_attention.default
        given = (query, key, value, mask, bound["dropout_p"], match.data is True)
        return editor.call(target, *given, **kept)


def _unexpanded(mask: object) -> object:
    while isinstance(mask, Node) and is_call(mask, aten.expand):
        mask = mask.args[0]
    return mask


def _is_causal(mask: Tensor, node: Node) -> bool:
    """Whether a mask is the lower triangle, as large as the products."""
    query, key = (known_tensor(item).shape[-2] for item in node.args[:2])
    if mask.ndim < 2 or mask.shape[-2:] != (query, key) or query != key:
        return False
    lower = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    return torch.equal(mask, lower.expand(mask.shape))
