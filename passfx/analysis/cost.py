"""What a graph costs: operators, multiply-accumulates, parameters, bytes of weights."""

import math
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, ops
from torch.fx import GraphModule, Node

from passfx.graph.query import (
    arguments,
    constant,
    hint,
    is_call,
    is_constant,
    op_name,
    operators,
    tensor,
)

aten = ops.aten

_CONVS = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
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
    if is_call(node, *_CONVS, *_TRANSPOSED, aten.linear):
        weight = tensor(arguments(node)["weight"])
        positions = tensor(node.args[0]) if is_call(node, *_TRANSPOSED) else out
        assert weight is not None and positions is not None
        return _elements(positions) * math.prod(map(hint, weight.shape[1:]))
    if is_call(node, *_PRODUCTS):
        left = tensor(node.args[1 if is_call(node, aten.addmm, aten.baddbmm) else 0])
        assert left is not None
        return _elements(out) * hint(left.shape[-1])
    if is_call(node, aten.einsum):
        return _einsum_macs(node, out)
    if is_call(node, aten.scaled_dot_product_attention):
        query, key, value = (tensor(item) for item in node.args[:3])
        assert query is not None and key is not None and value is not None
        rows = _elements(query) // hint(query.shape[-1])
        return rows * hint(key.shape[-2]) * hint(query.shape[-1]) + _elements(out) * hint(
            key.shape[-2]
        )
    return 0


def _elements(item: Tensor) -> int:
    return math.prod(map(hint, item.shape))


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
    return _elements(out) * math.prod(size for name, size in sizes.items() if name not in kept)
