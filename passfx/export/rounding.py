"""Half precision by example: what rounding to it loses, and what a model in it gives.

A GPU multiplies in half precision, accumulates in float32 and rounds the result. Both functions do
that on any provider, in float32 with every rounding as a pair of casts: `measure_losses` for one
operator at a time, `emulated` for a whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from passfx.export.arrays import Array

Run = Callable[[ir.Model, Sequence[Mapping[str, Array]]], list[list[Array]]]

FULL = ir.DataType.FLOAT
# Operators that only move or select values, and round nothing.
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A floating format of 16 bits: its largest number and its unit roundoff."""

    dtype: ir.DataType
    largest: float
    roundoff: float
    name: str

    def round(self, values: Array) -> Array:
        """Float32 values as the format has them, in float32."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy()).astype(np.float32)


FORMATS = {
    "fp16": Format(ir.DataType.FLOAT16, 65504.0, 2**-11, "float16"),
    "bf16": Format(ir.DataType.BFLOAT16, 3.3895e38, 2**-8, "bfloat16"),
}


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
    found = run(_probe(model, nodes, chosen), samples)
    maxima = np.max([np.array(item, dtype=np.float64) for item in found], axis=0)
    return {node: Loss(*row) for node, row in zip(nodes, maxima.reshape(-1, 3), strict=True)}


def _probe(model: ir.Model, nodes: Sequence[ir.Node], chosen: Format) -> ir.Model:
    """A model whose outputs are the fields of `Loss`, node by node."""
    probe = model.clone()
    twins = dict(zip(model.graph, list(probe.graph), strict=True))
    builder = _Builder(probe.graph)
    rounded: dict[ir.Value, ir.Value] = {}

    def round_value(value: ir.Value) -> ir.Value:
        if value not in rounded:
            rounded[value] = builder.cast(builder.cast(value, chosen.dtype), FULL)
        return rounded[value]

    def error(node: ir.Node, result: ir.Value, is_rounded: Callable[[ir.Value], bool]) -> ir.Value:
        inputs = [
            round_value(read) if read is not None and is_full(read) and is_rounded(read) else read
            for read in node.inputs
        ]
        again = result
        if node.op_type not in MOVES and inputs != list(node.inputs):
            copied = ir.Node(
                node.domain, node.op_type, inputs, node.attributes, num_outputs=len(node.outputs)
            )
            again = builder.append(copied, FULL, index=node.outputs.index(result))
        return builder.largest(builder.call("Sub", round_value(again), result))

    results: list[ir.Value] = []
    for node in nodes:
        twin = twins[node]
        result = float_outputs(twin)[0]
        own, inputs = error(twin, result, is_fixed), error(twin, result, lambda _: True)
        results += [own, inputs, builder.largest(result)]
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(results)
    return probe


class _Builder:
    """Appends operators to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0

    def append(self, node: ir.Node, dtype: ir.DataType, index: int = 0) -> ir.Value:
        for value in node.outputs:
            self._count += 1
            value.name = f"passfx_probe_{self._count}"
        node.name = f"passfx_probe_node_{self._count}"
        self._graph.append(node)
        node.outputs[index].type = ir.TensorType(dtype)
        return node.outputs[index]

    def call(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        return self.append(ir.Node("", op_type, inputs), FULL)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.append(cast_to(value, dtype), dtype)

    def largest(self, value: ir.Value) -> ir.Value:
        attributes = [ir.AttrInt64("keepdims", 0)]
        result = self.append(ir.Node("", "ReduceMax", [self.call("Abs", value)], attributes), FULL)
        result.shape = ir.Shape([])
        return result


def emulated(model: ir.Model) -> ir.Model:
    """A copy in which every operator of half precision computes in float32 and rounds its results.

    It gives on any provider what hardware gives that accumulates in float32; inputs and outputs
    keep their dtypes.
    """
    halves = {chosen.dtype for chosen in FORMATS.values()}
    copied = model.clone()
    infer_types(copied)
    graph = copied.graph
    widened: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast" or not any(
            read is not None and read.dtype in halves for read in node.inputs
        ):
            continue
        for index, read in enumerate(node.inputs):
            if read is None or read.dtype not in halves:
                continue
            if read not in widened:
                cast = cast_to(read, FULL)
                cast.name, cast.outputs[0].name = f"{read.name}_widen", f"{read.name}_widened"
                graph.insert_before(node, cast)
                widened[read] = cast.outputs[0]
            node.replace_input_with(index, widened[read])
        for value in node.outputs:
            if value.dtype in halves:
                _round_output(graph, node, value)
    return copied


def _round_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let a node compute a value in float32, and everyone read it rounded."""
    assert value.dtype is not None
    name, dtype = value.name, value.dtype
    value.type, value.name = ir.TensorType(FULL), f"{name}_exact"
    cast = cast_to(value, dtype)
    cast.name, cast.outputs[0].name = f"{name}_round", name
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    graph.insert_after(node, cast)


def infer_types(model: ir.Model) -> None:
    """Types of all values, for files that were written without them."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)


def cast_to(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """A cast, not yet in a graph."""
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))])
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node


def float_outputs(node: ir.Node) -> list[ir.Value]:
    """The results in float32."""
    return [value for value in node.outputs if is_full(value)]


def is_full(value: ir.Value) -> bool:
    """Whether a value is float32."""
    return value.dtype == FULL


def is_fixed(value: ir.Value) -> bool:
    """Whether a value is a weight."""
    return value.const_value is not None
