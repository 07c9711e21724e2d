"""Siblings on one input into one operator."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from passfx.analysis.cost import macs, node_seconds
from passfx.analysis.layouts import MemoryReaders
from passfx.graph.editor import Editor, Match, beside, refuse
from passfx.graph.ops import CLIPS, CONVS, aten
from passfx.graph.query import arguments, constant, is_call, is_constant, parameters
from passfx.graph.shapes import dtypes, known_tensor, nbytes
from passfx.passes.base import Found, Pass
from passfx.target import Profile

Nodes = list[Node]

_LAYERS = (*CONVS, aten.linear)
_ACTIVATIONS = (
    *(*CLIPS, aten.sigmoid, aten.tanh, aten.silu, aten.gelu, aten.elu, aten.selu, aten.mish),
    *(aten.softplus, aten.hardswish, aten.hardsigmoid, aten.leaky_relu),
)


class MergeSiblings(Pass):
    """Compute layers of one input and one geometry by one operator and a split.

        act(W1·x + b1), act(W2·x + b2), … = split(act([W1; W2; …]·x + [b1; b2; …]))

    Siblings are convolutions that agree in kernel, stride, padding, dilation and dtype, or linear
    layers. A missing bias counts as zeros where another sibling has one. Siblings that are each
    read by the same activation alone are merged first, with that activation; then all of them.

    Kept, or refused:
    1. siblings that are predicted to be slower as one, because of the split, with the figures;
    2. a weight that others read too, which would be stored twice;
    3. siblings before an operator that reads memory as it lies (as_strided, view_as_complex),
       because a part of a split does not lie as a tensor of its own does;
    4. grouped and depthwise convolutions, weights that are computed from inputs, integers.
    """

    name = "merge-siblings"

    def matches(self, graph: Graph) -> Iterator[Found]:
        readers = MemoryReaders(graph)
        for source in graph.nodes:
            for siblings, activations in _merges(source):
                first, count = siblings[0], len(siblings)
                apart, together = _seconds(siblings, activations, self.target.profile)
                figures = f"would take {together * 1e6:.1f} µs, {apart * 1e6:.1f} µs apart"
                if together >= apart:
                    yield refuse(first, f"{count} siblings as one {figures}")
                elif reasons := [*filter(None, (_unsafe(node, readers) for node in siblings))]:
                    yield refuse(first, reasons[0])
                else:
                    nodes = tuple(sorted({*siblings, *activations}))
                    data = siblings, activations
                    yield Match(first, nodes, f"{count} siblings as one and a split", data)

    def rewrite(self, editor: Editor, match: Match) -> dict[Node, Node]:
        siblings, activations = match.data
        fake = known_tensor(match.at)
        weights = [constant(arguments(node)["weight"]).double() for node in siblings]
        biases = [arguments(node)["bias"] for node in siblings]

        def attach(name: str, parts: list[Tensor]) -> Node:
            return editor.constant(torch.cat(parts), fake.dtype, beside(match.at, name))

        bound = arguments(match.at) | {"weight": attach("weight", weights)}
        if any(biases):
            pairs = zip(weights, biases, strict=True)
            filled = [w.new_zeros(len(w)) if b is None else constant(b).double() for w, b in pairs]
            bound["bias"] = attach("bias", filled)
        whole = editor.call(cast(Any, match.at.target), *bound.values())
        for node in activations[:1]:
            whole = editor.again(node, {match.at: whole})
        sizes, channels = [len(weight) for weight in weights], fake.ndim + 1 - weights[0].ndim
        parts = editor.call(aten.split_with_sizes.default, whole, sizes, channels)
        replaced = enumerate(activations or siblings)
        return {node: editor.item(parts, number) for number, node in replaced}


def _merges(source: Node) -> Iterator[tuple[Nodes, Nodes]]:
    """Siblings and their activations: those with an activation in common, then all, without."""

    readers = set(source.users)
    for geometry, group in _grouped(readers, lambda node: _geometry(node, source)).items():
        alike = [same for same in _grouped(group, _activation).values() if len(same) > 1]
        for same in alike:
            yield same, [next(iter(node.users)) for node in same]
        # As the merges so far have left them; what those made are the last readers.
        made = [*takewhile(lambda node: node not in readers, reversed(source.users))]
        readers.update(made)
        left = [node for node in group if source in node.all_input_nodes]
        rest = sorted({*left, *(node for node in made if _geometry(node, source) == geometry)})
        if group not in alike and len(rest) > 1:
            yield rest, []


def _grouped(nodes: Iterable[Node], key: Callable[[Node], Hashable]) -> dict[Hashable, Nodes]:
    """The nodes of each key, in topological order; those whose key is None are left out."""
    groups = defaultdict(list)
    for node in sorted(nodes):
        if (found := key(node)) is not None:
            groups[found].append(node)
    return groups


def _geometry(node: Node, source: Node) -> Hashable | None:
    """What siblings agree in; None for a node that cannot be one."""
    if not is_call(node, *_LAYERS) or not node.users or arguments(node).get("groups", 1) != 1:
        return None
    _, weight, _, *rest = arguments(node).values()
    params, fake = parameters(node), known_tensor(node)
    if node.all_input_nodes != [source, *params] or not all(map(is_constant, params)):
        return None
    types = dtypes((node, *params, source))
    if len(types) > 1 or not fake.is_floating_point() or known_tensor(weight).ndim < 2:
        return None
    return node.target, *types, tuple(known_tensor(weight).shape[1:]), str(rest)


def _activation(node: Node) -> Hashable | None:
    """The activation that alone reads a node, with its settings."""
    user = next(iter(node.users))
    if len(node.users) > 1 or not is_call(user, *_ACTIVATIONS) or len(user.all_input_nodes) > 1:
        return None
    return user.target, *list(arguments(user).values())[1:]


def _seconds(siblings: Nodes, activations: Nodes, profile: Profile) -> tuple[float, float]:
    """The predicted times apart and as one; a split and an activation move all results twice."""
    apart = sum(node_seconds(node, profile) for node in (*siblings, *activations))
    read = {item for node in siblings for item in node.all_input_nodes}
    results = sum(map(nbytes, siblings))
    layer = profile.seconds(sum(map(macs, siblings)), sum(map(nbytes, read)) + results)
    return apart, layer + (2 if activations else 1) * profile.seconds(0, 2 * results)


def _unsafe(node: Node, readers: MemoryReaders) -> str | None:
    """Why a sibling must stay by itself."""
    if len(arguments(node)["weight"].users) > 1:
        return f"the weight of {node.name} is read by others too, and would be stored twice"
    if (user := readers.after(node)) is not None:
        return f"{user.name} reads memory as it lies, and a part of a split lies otherwise"
    return None
