"""Half precision by example: what rounding to it loses, and what a model in it gives.

A GPU multiplies in half precision, accumulates in float32 and rounds the result. Both functions do
that on any provider, in float32 with every rounding as a pair of casts: `measure_losses` for one
operator at a time, `emulated` for a whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from passfx.export.arrays import Array
from passfx.export.casts import (
    FULL,
    Format,
    cast_to,
    infer_types,
    is_fixed,
    is_full,
    is_half,
    weight,
)
from passfx.verify.error import channel_axes, underflowed

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
        vanished: the error of a channel, relative to it, with the weights rounded that are too
            small for the format; where the result is only added to something, to that sum.
    """

    own: float
    inputs: float
    reach: float
    vanished: float = 0.0


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
    vanished = [(node, item) for node in nodes for item in builder.vanished(twins[node])]
    probe.graph.outputs.clear()
    probe.graph.outputs.extend([*results, *(item for _, item in vanished)])
    figures = np.array(run(probe, samples), dtype=np.float64).max(axis=0)
    rows = figures[: len(results)].reshape(-1, 3)
    losses = {node: Loss(*row) for node, row in zip(nodes, rows, strict=True)}
    for (node, _), share in zip(vanished, figures[len(results) :], strict=True):
        losses[node] = losses[node]._replace(vanished=max(losses[node].vanished, float(share)))
    return losses


def only_sum(node: ir.Node) -> ir.Node | None:
    """The addition that alone reads a result."""
    readers = node.successors()
    is_sum = len(readers) == 1 and readers[0].op_type in ("Add", "Sub")
    return readers[0] if is_sum and not node.outputs[0].is_graph_output() else None


class _Builder:
    """Appends to a graph what measures its operators."""

    def __init__(self, graph: ir.Graph, chosen: Format) -> None:
        self._graph = graph
        self._format = chosen
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._rounded_small: dict[ir.Value, ir.Value | None] = {}
        self._sums = {node: only_sum(node) for node in graph}
        self._count = 0

    def losses(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The fields of `Loss`, as values of the graph."""
        result = next(value for value in node.outputs if is_full(value))
        own, inputs = self._error(node, result, is_fixed), self._error(node, result, is_full)
        return own, inputs, self._largest(result)

    def vanished(self, node: ir.Node) -> list[ir.Value]:
        """What `Loss.vanished` is the largest of; nothing where no weight is too small."""
        result = next(value for value in node.outputs if is_full(value))
        small = list(map(self._small, node.inputs))
        if all(item is None for item in small) or result.shape is None:
            return []
        inputs = [new or old for new, old in zip(small, node.inputs, strict=True)]
        count, total = len(node.outputs), self._sums.get(node)
        twin = ir.Node(node.domain, node.op_type, inputs, node.attributes, num_outputs=count)
        again = self._append(twin, node.outputs.index(result))
        lost = self._append(ir.Node("", "Sub", [again, result]))
        whole = total.outputs[0] if total and total.outputs[0].shape == result.shape else result
        rank = len(result.shape)
        ratios = []
        for axis in channel_axes(rank):
            others = [item for item in range(rank) if item != axis]
            error, reach = (self._largest(value, others) for value in (lost, whole))
            least = self._constant(np.array(np.finfo(np.float32).tiny))
            scale = self._append(ir.Node("", "Max", [reach, least]))
            ratios.append(self._largest(self._append(ir.Node("", "Div", [error, scale]))))
        return ratios

    def _small(self, value: ir.Value | None) -> ir.Value | None:
        """A weight with those elements rounded that are too small for the format."""
        array = weight(value)
        if value is None or array is None:
            return None
        if value not in self._rounded_small:
            dtype = getattr(torch, self._format.name)
            found = underflowed(torch.from_numpy(np.array(array)), dtype)
            self._rounded_small[value] = None if found is None else self._constant(found.numpy())
        return self._rounded_small[value]

    def _constant(self, array: Array) -> ir.Value:
        self._count += 1
        name = f"passfx_probe_{self._count}"
        stored = ir.tensor(array, name=name)
        kind, shape = ir.TensorType(stored.dtype), ir.Shape(array.shape)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=stored)
        self._graph.register_initializer(value)
        return value

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

    def _largest(self, value: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
        """The largest absolute value, over some axes or all."""
        inputs = [self._append(ir.Node("", "Abs", [value]))]
        if axes == []:
            return inputs[0]
        if axes is not None:
            inputs.append(self._constant(np.array(axes, dtype=np.int64)))
        result = self._append(ir.Node("", "ReduceMax", inputs, [ir.AttrInt64("keepdims", 0)]))
        result.shape = ir.Shape([]) if axes is None else None
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
