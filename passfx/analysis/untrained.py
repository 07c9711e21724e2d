"""Layers that compute nothing as long as nothing was trained."""

from collections.abc import Iterator
from typing import Any

from torch.fx import Graph, Node

from passfx.graph.ops import LAYERS, aten
from passfx.graph.query import arguments, constant, is_call, is_constant, module_path

_NORMS = (
    *(aten.batch_norm, aten._native_batch_norm_legit_no_training, aten.instance_norm),
    *(aten.layer_norm, aten.native_layer_norm, aten.group_norm, aten.native_group_norm),
    aten.rms_norm,
)


def zero_layers(graph: Graph) -> tuple[str, ...]:
    """The layers, norms and scales whose weights are all zero: the paths of their modules.

    A library starts the last norm of a residual block so, or the head; a branch behind it is dead.
    """
    found = (
        module_path(node) or node.name
        for node in graph.nodes
        if any(not constant(item).any() for item in _weights(node))
    )
    return tuple(dict.fromkeys(found))


def _weights(node: Node) -> Iterator[Node]:
    """The constants that scale what an operator gives."""
    given: list[Any] = []
    if is_call(node, *LAYERS, *_NORMS):
        given = [arguments(node).get("weight")]
    elif is_call(node, aten.mul):
        given = node.all_input_nodes
    for item in given:
        if is_constant(item) and constant(item).is_floating_point() and constant(item).numel():
            yield item
