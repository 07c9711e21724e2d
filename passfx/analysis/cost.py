"""What a graph costs: operators, multiply-accumulates, parameters, bytes of weights."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import SymInt
from torch.fx import GraphModule, Node

from passfx.algebra.geometry import Geometry
from passfx.graph.ops import CONVS, LAYERS, MATMULS, TRANSPOSED_CONVS, aten
from passfx.graph.query import (
    arguments,
    constant,
    is_call,
    is_constant,
    op_name,
    operators,
    tensor,
    tensors,
    value,
)
from passfx.graph.shapes import NONE, Symbols, elements, hint, known_tensor, nbytes
from passfx.target import Profile

_PRODUCTS = (*MATMULS, aten.addmm, aten.baddbmm, aten.mv, aten.dot)


@dataclass(frozen=True)
class GraphCost:
    """The size of a graph; `macs` are for one run at the example's sizes, of a batch of 1.

    A first axis of inputs that does not vary counts as it is.

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
    counts, single = Counter(map(op_name, nodes)), _single(graph_module)
    return GraphCost(
        nodes=len(nodes),
        ops=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        macs=sum(macs(node, single) for node in nodes),
        params=sum(item.numel() for item in stored.values() if item.is_floating_point()),
        weight_bytes=sum(item.nbytes for item in stored.values()),
    )


def _single(graph_module: GraphModule) -> Symbols:
    """A batch of 1, where the first axis of an input varies."""
    shapes = (
        item.shape for item in tensors(map(value, graph_module.graph.find_nodes(op="placeholder")))
    )
    batches: Iterator[Any] = (shape[0] for shape in shapes if len(shape))
    symbols = (size.node.expr for size in batches if isinstance(size, SymInt))
    return {symbol: 1 for symbol in symbols if symbol.is_Symbol}


def macs(node: Node, given: Symbols = NONE) -> int:
    """The multiply-accumulates of one operator: convolutions, linear layers, matrix products.

    Elementwise work, norms and pools count as none, as is usual for this figure. A convolution
    takes (output elements) · in/groups · taps; a transposed one (input elements) · out/groups ·
    taps; a matrix product (output elements) · (inner size); attention is two matrix products.

    Args:
        given: values of symbols, instead of those of the example.
    """
    if tensor(node) is None:
        return 0
    if is_call(node, *LAYERS):
        positions = node.args[0] if is_call(node, *TRANSPOSED_CONVS) else node
        weight = known_tensor(arguments(node)["weight"])
        return elements(positions, given) * math.prod(map(hint, weight.shape[1:]))
    if is_call(node, *_PRODUCTS):
        left = node.args[1 if is_call(node, aten.addmm, aten.baddbmm) else 0]
        return elements(node, given) * hint(known_tensor(left).shape[-1], given)
    if is_call(node, aten.einsum):
        return _einsum_macs(node, given)
    if is_call(node, aten.scaled_dot_product_attention):
        query, key = node.args[:2]
        pairs = elements(query, given) + elements(node, given)
        return pairs * hint(known_tensor(key).shape[-2], given)
    return 0


def _einsum_macs(node: Node, given: Symbols) -> int:
    """(output elements) · (sizes of the subscripts that are summed), for two operands or more."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(operands, list | tuple)
    if len(operands) < 2:
        return 0
    read, arrow, kept = equation.replace(" ", "").partition("->")
    if not arrow:
        kept = "".join(label for label in read if read.count(label) == 1)
    sizes: dict[str, int] = {}
    for subscripts, operand in zip(read.split(","), operands, strict=True):
        shape = [hint(size, given) for size in known_tensor(operand).shape]
        left, _, right = subscripts.partition("...")
        sizes.update(zip(left, shape, strict=False))
        sizes.update(zip(right[::-1], shape[::-1], strict=False))
    return elements(node, given) * math.prod(
        size for name, size in sizes.items() if name not in kept
    )


def node_seconds(node: Node, profile: Profile) -> float:
    """The predicted time of an operator as it stands."""
    moved = sum(nbytes(item) for item in (node, *node.all_input_nodes) if tensor(item) is not None)
    return profile.seconds(macs(node), moved, is_depthwise=_is_depthwise(node))


def _is_depthwise(node: Node) -> bool:
    if not is_call(node, *CONVS, *TRANSPOSED_CONVS):
        return False
    bound, source = arguments(node), known_tensor(node.args[0])
    return bool(bound["groups"] == source.shape[1 - known_tensor(bound["weight"]).ndim] > 1)


def form_bytes(geometry: Geometry, node: Node) -> int:
    """The bytes of the weights of what computes `node` in this shape, in the dtype of the node."""
    channels = geometry.channels_out
    if geometry.uncut.is_pointwise:
        count = channels * (4 if geometry.biased else 1)  # those of a norm, at most
    else:
        count = channels * (_per_output(geometry) + geometry.biased)
    return count * known_tensor(node).element_size()


def _per_output(geometry: Geometry) -> int:
    """The weights that one output reads."""
    return geometry.channels_in // geometry.groups * math.prod(geometry.kernel)


def form_seconds(geometry: Geometry, source: Node, node: Node, profile: Profile) -> float:
    """The predicted time of what computes `node` from `source` in this shape.

    That is one operator, and before it slices for what it crops, and a pad if it takes one.
    """
    given, out, transposed = elements(source), elements(node), geometry.transposed
    per_output = _per_output(geometry)
    positions = given // geometry.channels_in * geometry.channels_out if transposed else out
    size = known_tensor(node).element_size()
    moved = (given + out + geometry.channels_out * per_output) * size
    besides = (geometry.crops + geometry.is_padded_apart) * profile.seconds(0, 2 * given * size)
    if geometry.uncut.is_pointwise:
        return profile.seconds(0, moved) + besides
    is_depthwise = geometry.groups == geometry.channels_in > 1
    return profile.seconds(positions * per_output, moved, is_depthwise=is_depthwise) + besides
