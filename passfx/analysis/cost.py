"""What a graph costs: operators, multiply-accumulates, parameters, bytes of weights."""

import math
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, ops
from torch.fx import GraphModule, Node

from passfx.algebra.geometry import Geometry
from passfx.graph.query import (
    CONVS,
    TRANSPOSED_CONVS,
    arguments,
    constant,
    elements,
    hint,
    is_call,
    is_constant,
    op_name,
    operators,
    tensor,
)
from passfx.target import Profile

aten = ops.aten

_PRODUCTS = (aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot)


@dataclass(frozen=True)
class GraphCost:
    """The size of a graph; `macs` are for one run at the example's sizes.

    `params` counts the elements of floating constants, each stored tensor once.
    """

    nodes: int
    ops: dict[str, int]
    macs: int
    params: int
    weight_bytes: int


def graph_cost(graph_module: GraphModule) -> GraphCost:
    """The size of a captured graph."""
    nodes = operators(graph_module)
    stored = {
        (item.data_ptr(), item.shape): item
        for item in map(constant, filter(is_constant, graph_module.graph.nodes))
    }
    counts = Counter(map(op_name, nodes))
    return GraphCost(
        nodes=len(nodes),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        macs=sum(map(macs, nodes)),
        params=sum(item.numel() for item in stored.values() if item.is_floating_point()),
        weight_bytes=sum(item.nbytes for item in stored.values()),
    )


def macs(node: Node) -> int:
    """The multiply-accumulates of one operator: convolutions, linear layers, matrix products.

    Elementwise work, norms and pools count as none, as is usual for this figure. A convolution
    takes (output elements) · in/groups · taps; a transposed one (input elements) · out/groups ·
    taps; a matrix product (output elements) · (inner size); attention is two matrix products.
    """
    out = tensor(node)
    if out is None:
        return 0
    if is_call(node, *CONVS, *TRANSPOSED_CONVS, aten.linear):
        weight = tensor(arguments(node)["weight"])
        positions = tensor(node.args[0]) if is_call(node, *TRANSPOSED_CONVS) else out
        assert weight is not None and positions is not None
        return elements(positions) * math.prod(map(hint, weight.shape[1:]))
    if is_call(node, *_PRODUCTS):
        left = tensor(node.args[1 if is_call(node, aten.addmm, aten.baddbmm) else 0])
        assert left is not None
        return elements(out) * hint(left.shape[-1])
    if is_call(node, aten.einsum):
        return _einsum_macs(node, out)
    if is_call(node, aten.scaled_dot_product_attention):
        query, key, value = (tensor(item) for item in node.args[:3])
        assert query is not None and key is not None and value is not None
        rows = elements(query) // hint(query.shape[-1])
        return rows * hint(key.shape[-2]) * hint(query.shape[-1]) + elements(out) * hint(
            key.shape[-2]
        )
    return 0


def _einsum_macs(node: Node, out: Tensor) -> int:
    """(output elements) · (sizes of the subscripts that are summed), for two operands or more."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(operands, list | tuple)
    if len(operands) < 2:
        return 0
    given, arrow, kept = equation.replace(" ", "").partition("->")
    if not arrow:
        kept = "".join(label for label in given if given.count(label) == 1)
    sizes: dict[str, int] = {}
    for subscripts, operand in zip(given.split(","), operands, strict=True):
        fake = tensor(operand)
        assert fake is not None
        shape = [*map(hint, fake.shape)]
        left, _, right = subscripts.partition("...")
        sizes.update(zip(left, shape, strict=False))
        sizes.update(zip(right[::-1], shape[::-1], strict=False))
    return elements(out) * math.prod(size for name, size in sizes.items() if name not in kept)


def node_seconds(node: Node, profile: Profile) -> float:
    """The predicted time of an operator as it stands."""
    tensors = [item for item in map(tensor, [node, *node.all_input_nodes]) if item is not None]
    moved = sum(elements(item) * item.element_size() for item in tensors)
    return profile.seconds(macs(node), moved, is_depthwise=_is_depthwise(node))


def _is_depthwise(node: Node) -> bool:
    if not is_call(node, *CONVS, *TRANSPOSED_CONVS):
        return False
    bound, source = arguments(node), tensor(node.args[0])
    assert source is not None
    weight = tensor(bound["weight"])
    assert weight is not None
    return bool(bound["groups"] == source.shape[1 - weight.ndim] > 1)


def form_seconds(geometry: Geometry, source: Node, node: Node, profile: Profile) -> float:
    """The predicted time of what computes `node` from `source` in this shape.

    That is one operator, and a pad before it if it takes one.
    """
    x, y = tensor(source), tensor(node)
    assert x is not None
    assert y is not None
    axes = geometry.axes
    taps = math.prod(a.taps if geometry.transposed else a.uncropped.taps for a in axes)
    per_output = geometry.channels_in // geometry.groups * taps
    weights = geometry.channels_out * per_output
    positions = elements(x) // geometry.channels_in * geometry.channels_out
    multiplied = (positions if geometry.transposed else elements(y)) * per_output
    size, moved = y.element_size(), elements(x) + elements(y) + weights
    if geometry.is_pointwise:
        return profile.seconds(0, moved * size)
    is_depthwise = geometry.groups == geometry.channels_in > 1
    seconds = profile.seconds(multiplied, moved * size, is_depthwise=is_depthwise)
    if geometry.is_padded_apart:
        seconds += profile.seconds(0, 2 * elements(x) * size)
    return seconds
