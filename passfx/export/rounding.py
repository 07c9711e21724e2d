"""Half precision by example: what rounding to it loses, and what a model in it gives.

A GPU multiplies in half precision, accumulates in float32 and rounds the result. Both functions do
that on any provider, in float32 with every rounding as a pair of casts: `measure_losses` for one
operator at a time, `emulated` for a whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from passfx.export.arrays import Array
from passfx.export.casts import FULL, Format, cast_to, infer_types, is_fixed, is_full, is_half

Run = Callable[[ir.Model, Sequence[Mapping[str, Array]]], list[list[Array]]]

# Operators that only move or select values, and round nothing.
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


class Loss(NamedTuple):
    """What rounding does to the first result of an operator: maxima over elements and samples.

    Attributes:
        own: the error with its weights and its result rounded.
        inputs: the error with its inputs rounded as well.
        reach: the absolute value of the result.
    """

    own: float
    inputs: float
    reach: float


def measure_losses(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    chosen: Format,
    samples: Sequence[Mapping[str, Array]],
    run: Run,
) -> dict[ir.Node, Loss]:
    """Run every operator as it is and rounded, in one model that gives back nothing but maxima."""
    if not nodes:
        return {}
    probe = model.clone()
    twins = dict(zip(model.graph, list(probe.graph), strict=True))
    builder = _Builder(probe.graph, chosen)
    results = [item for node in nodes for item in builder.losses(twins[node])]
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(results)
    rows = np.array(run(probe, samples), dtype=np.float64).max(axis=0).reshape(-1, 3)
    return {node: Loss(*row) for node, row in zip(nodes, rows, strict=True)}


class _Builder:
    """Appends to a graph what measures its operators."""

    def __init__(self, graph: ir.Graph, chosen: Format) -> None:
        self._graph = graph
        self._format = chosen
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._count = 0

    def losses(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The fields of `Loss`, as values of the graph."""
        result = next(value for value in node.outputs if is_full(value))
        own, inputs = self._error(node, result, is_fixed), self._error(node, result, is_full)
        return own, inputs, self._largest(result)

    def _error(
        self, node: ir.Node, result: ir.Value, is_rounded: Callable[[ir.Value | None], bool]
    ) -> ir.Value:
        inputs = [self._round(x) if is_full(x) and is_rounded(x) else x for x in node.inputs]
        again = result
        if node.op_type not in MOVES and inputs != list(node.inputs):
            count = len(node.outputs)
            twin = ir.Node(node.domain, node.op_type, inputs, node.attributes, num_outputs=count)
            again = self._append(twin, node.outputs.index(result))
        return self._largest(self._append(ir.Node("", "Sub", [self._round(again), result])))

    def _round(self, value: ir.Value) -> ir.Value:
        if value not in self._rounded:
            half = self._append(cast_to(value, self._format.dtype))
            self._rounded[value] = self._append(cast_to(half, FULL))
        return self._rounded[value]

    def _largest(self, value: ir.Value) -> ir.Value:
        sizes = self._append(ir.Node("", "Abs", [value]))
        result = self._append(ir.Node("", "ReduceMax", [sizes], [ir.AttrInt64("keepdims", 0)]))
        result.shape = ir.Shape([])
        return result

    def _append(self, node: ir.Node, index: int = 0) -> ir.Value:
        for value in node.outputs:
            self._count += 1
            value.name = f"passfx_probe_{self._count}"
        node.name = f"passfx_probe_node_{self._count}"
        self._graph.append(node)
        result = node.outputs[index]
        result.type = result.type or ir.TensorType(FULL)
        return result


def emulated(model: ir.Model) -> ir.Model:
    """A copy in which every operator of half precision computes in float32 and rounds its results.

    It gives on any provider what hardware gives that accumulates in float32; inputs and outputs
    keep their dtypes.
    """
    copied = model.clone()
    infer_types(copied)
    graph = copied.graph
    widened: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast" or not any(map(is_half, node.inputs)):
            continue
        for index, read in enumerate(node.inputs):
            if is_half(read):
                if read not in widened:
                    cast = cast_to(read, FULL, f"{read.name}_widen", f"{read.name}_widened")
                    graph.insert_before(node, cast)
                    (widened[read],) = cast.outputs
                node.replace_input_with(index, widened[read])
        for value in filter(is_half, node.outputs):
            _round_output(graph, node, value)
    return copied


def _round_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let a node compute a value in float32, and everyone read it rounded."""
    assert value.dtype is not None
    name = value.name
    cast = cast_to(value, value.dtype, f"{name}_round", name)
    value.type, value.name = ir.TensorType(FULL), f"{name}_exact"
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    graph.insert_after(node, cast)
