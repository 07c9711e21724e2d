"""Shortcuts: the branches from a fork to a merge that are no-ops or affine.

A merge joins two tensors that share an ancestor. Its fork is the nearest common dominator of the
two operands: the last value that everything on both branches has passed through. A branch that
changes nothing is an identity shortcut; one that is affine in the fork (conv, linear, eval-mode
norm, scale, average pool, zero pad) is a projection. The other branch is the body.
"""

import operator
from collections.abc import Container
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passfx.graph import ops
from passfx.graph.ops import aten
from passfx.graph.query import arguments, is_call, module_path, op_name, reached, tensor, value
from passfx.graph.shapes import same_type

_MERGES = (aten.add, aten.sub)
_MOVES = (
    *(*ops.TRANSPOSES, *ops.SHUFFLES, *ops.INTERPOLATIONS),
    *(aten.t, aten.select, aten.repeat, aten.roll, aten.flip, aten.neg, aten.constant_pad_nd),
    *(aten.cat, aten.stack, *ops.AVERAGE_POOLS, *ops.ADAPTIVE_POOLS, aten.mean, aten.sum),
)
_PARTS = (*ops.SPLITS, aten.unbind)
_PRODUCTS = (aten.mul, *ops.MATMULS)
# Affine, and the identity where the type stays.
_NOTHING = (*ops.COPIES, *ops.RESHAPES, aten.dropout, aten.expand, aten.slice)


@dataclass(frozen=True)
class Shortcut:
    """One shortcut of a captured graph; nodes are given by name, branches in topological order.

    Attributes:
        kind: "identity" or "projection".
        merge_op: "add" or "sub".
        fork, merge: the node where the branches part, and the one where they meet.
        module: the module that the merge was traced in.
        path: the nodes of the shortcut's own branch; empty for an identity.
        body: the nodes of the other branch.
        collapsible: whether the body is affine in the fork as well, so that the whole merge is one
            affine operator.
    """

    kind: str
    merge_op: str
    fork: str
    merge: str
    module: str
    path: tuple[str, ...]
    body: tuple[str, ...]
    collapsible: bool


def find_shortcuts(graph_module: GraphModule) -> tuple[Shortcut, ...]:
    """The shortcuts of a captured graph, in the order of their merges."""
    dominators = _immediate_dominators(graph_module)
    found = (
        _shortcut(node, dominators)
        for node in graph_module.graph.nodes
        if is_call(node, *_MERGES) and len(node.all_input_nodes) == 2
    )
    return tuple(shortcut for shortcut in found if shortcut is not None)


def _shortcut(merge: Node, dominators: dict[Node, Node | None]) -> Shortcut | None:
    left, right = merge.all_input_nodes
    fork = _common_dominator(left, right, dominators)
    while fork is not None and tensor(fork) is None:  # the parts of a split
        fork = dominators[fork]
    if fork is None or tensor(left) is None or tensor(right) is None:
        return None
    branches = [_Branch.between(fork, end, dominators) for end in (left, right)]
    path = min((item for item in branches if item.kind), key=_Branch.order, default=None)
    if path is None:
        return None
    body = branches[1 - branches.index(path)]
    if body.kind == "identity":
        return None  # x + x is a scale
    return Shortcut(
        kind=str(path.kind),
        merge_op=op_name(merge),
        fork=fork.name,
        merge=merge.name,
        module=module_path(merge),
        path=tuple(node.name for node in path.nodes),
        body=tuple(node.name for node in body.nodes),
        collapsible=body.kind is not None,
    )


@dataclass(frozen=True)
class _Branch:
    """The nodes from a fork (excluded) to a merge (excluded), and what they are together."""

    nodes: tuple[Node, ...]
    kind: str | None

    @classmethod
    def between(cls, fork: Node, end: Node, inputs: Container[Node]) -> "_Branch":
        """The branch, without what is computed from constants alone; `inputs` has the others."""

        def reads(node: Node) -> list[Node]:
            return [] if node is fork else [read for read in node.all_input_nodes if read in inputs]

        nodes = tuple(node for node in reached(end, reads) if node is not fork)
        if all(is_call(node, *_NOTHING) and same_type(node, node.args[0]) for node in nodes):
            return cls(nodes, "identity")
        depends = {fork, *nodes}
        affine = all(is_affine(node, depends) for node in nodes)
        return cls(nodes, "projection" if affine else None)

    def order(self) -> tuple[bool, int]:
        return self.kind != "identity", len(self.nodes)


def is_affine(node: Node, variables: set[Node]) -> bool:
    """Whether a node is y = A·x + b in those of its inputs that are in `variables`.

    Weights and statistics must be constants; sizes of dynamic dimensions count as constants.
    """
    fake = tensor(node)
    if isinstance(value(node), torch.SymInt):
        return not is_call(node) or is_call(node, aten.sym_size)
    if fake is None:
        return is_call(node, *_PARTS)
    if not (fake.is_floating_point() or fake.is_complex()):
        return False
    if not is_call(node):
        return node.target is operator.getitem
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    reads = [item for item in leaves if tensor(item) is not None and item in variables]
    if is_call(node, *_MOVES, *_NOTHING, aten.add, aten.sub, aten.rsub):
        return True
    if is_call(node, *ops.LAYERS, aten.index_select):
        return reads == [node.args[0]]
    if is_call(node, aten.batch_norm):
        return reads == [node.args[0]] and not arguments(node)["training"]
    if is_call(node, *_PRODUCTS):
        return len(reads) == 1
    if is_call(node, aten.div):
        return reads == [node.args[0]] and arguments(node).get("rounding_mode") is None
    if is_call(node, aten.pad):
        return arguments(node)["mode"] in ("constant", "reflect", "replicate", "circular")
    return False


def _immediate_dominators(graph_module: GraphModule) -> dict[Node, Node | None]:
    """The immediate dominator of each node that depends on an input; None for an input itself.

    In a DAG visited in topological order, a node's immediate dominator is the nearest common
    dominator of its inputs (Cooper, Harvey and Kennedy, 2001, without the iteration).
    """
    dominators: dict[Node, Node | None] = {}
    nearest = partial(_common_dominator, dominators=dominators)
    for node in graph_module.graph.nodes:
        reads: list[Node | None] = [read for read in node.all_input_nodes if read in dominators]
        if node.op == "placeholder":
            dominators[node] = None
        elif reads:
            dominators[node] = reduce(nearest, reads)
    return dominators


def _common_dominator(
    a: Node | None, b: Node | None, dominators: dict[Node, Node | None]
) -> Node | None:
    while a is not b and a is not None and b is not None:
        a, b = (a, dominators.get(b)) if a < b else (dominators.get(a), b)
    return a if a is b else None
