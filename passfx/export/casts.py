"""Values in half precision: the formats, and the casts that a model needs where it is mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from passfx.export.arrays import Array

FULL = ir.DataType.FLOAT


@dataclass(frozen=True)
class Format:
    """A floating format of 16 bits: its largest number and its unit roundoff."""

    dtype: ir.DataType
    largest: float
    roundoff: float
    name: str


FORMATS = {
    "fp16": Format(ir.DataType.FLOAT16, 65504.0, 2**-11, "float16"),
    "bf16": Format(ir.DataType.BFLOAT16, 3.3895e38, 2**-8, "bfloat16"),
}


@dataclass
class Conversion:
    """Gives every operator its inputs in its own precision.

    Attributes:
        lowered: the operators that compute in the format; all others compute in float32.
        half_io: inputs and outputs of the model are converted too.
        casts: how many it took so far.
    """

    model: ir.Model
    format: Format
    lowered: Sequence[ir.Node]
    half_io: bool
    casts: int = 0
    _converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def apply(self) -> None:
        """Convert the model in place."""
        graph, half = self.model.graph, self.format.dtype
        # What is float32, and what may be converted, is asked before anything is.
        floats = {item for item in all_values(graph) if is_full(item)}
        indices = {node: convertible(self.model, node, self.format) for node in self.lowered}
        if self.half_io:
            for value in floats.intersection(graph.inputs):
                value.type = ir.TensorType(half)
        for node in list(graph):
            if _is_indifferent(node):
                continue
            inputs, outputs = indices.get(node, ((), ()))
            for index, read in enumerate(node.inputs):
                if read is not None and read in floats:
                    wanted = half if index in inputs else FULL
                    node.replace_input_with(index, self._as(read, wanted, node))
            for index in outputs:
                node.outputs[index].type = ir.TensorType(half)
            if node in indices and node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(half))
        for index, value in enumerate(graph.outputs):
            if value in floats:
                graph.outputs[index] = self._output(value)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
                if value.is_graph_input():  # older files list their weights among the inputs
                    graph.inputs.remove(value)

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None) -> ir.Value:
        """A value in a precision, for a reader: itself, or one conversion for all readers."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._converted:
            graph = self.model.graph
            name = f"{value.name}_{self.format.name if dtype != FULL else 'float32'}"
            if (array := weight(value)) is not None:
                tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
                kind = ir.TensorType(dtype)
                converted = ir.Value(name=name, shape=value.shape, type=kind, const_value=tensor)
                graph.register_initializer(converted)
            else:
                cast = cast_to(value, dtype, f"{name}_cast", name)
                if reader is None:
                    graph.append(cast)
                else:
                    graph.insert_before(reader, cast)
                (converted,) = cast.outputs
                self.casts += 1
            self._converted[value, dtype] = converted
        return self._converted[value, dtype]

    def _output(self, value: ir.Value) -> ir.Value:
        """An output in the precision of the interface, under its own name."""
        result = self._as(value, self.format.dtype if self.half_io else FULL, None)
        if result is not value and not value.is_graph_input():
            name = value.name
            value.name, result.name = f"{name}_{self.format.name}", name
        return result


def convertible(
    model: ir.Model, node: ir.Node, chosen: Format
) -> tuple[frozenset[int], frozenset[int]]:
    """The float32 inputs and outputs that an operator's schema allows in a format, by index."""
    if node.domain not in ("", "ai.onnx"):
        return frozenset(), frozenset()
    schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1), "")
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}

    def indices(values: Sequence[ir.Value | None], formal: Sequence[Any]) -> frozenset[int]:
        kinds = [formal[min(index, len(formal) - 1)].type_str for index in range(len(values))]
        return frozenset(
            index
            for index, (value, kind) in enumerate(zip(values, kinds, strict=True))
            if is_full(value) and f"tensor({chosen.name})" in allowed.get(kind, ())
        )

    return indices(node.inputs, schema.inputs), indices(node.outputs, schema.outputs)


def _is_indifferent(node: ir.Node) -> bool:
    """Whether a node takes its input in any precision, with the same result."""
    return node.op_type in ("Shape", "Size") or (
        node.op_type == "Cast" and not any(map(is_full, node.outputs))
    )


def cast_to(
    value: ir.Value, dtype: ir.DataType, name: str | None = None, result: str | None = None
) -> ir.Node:
    """A cast, not yet in a graph; `name` is its own, `result` that of what it gives."""
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], name=name)
    (output,) = node.outputs
    output.name, output.shape, output.type = result, value.shape, ir.TensorType(dtype)
    return node


def infer_types(model: ir.Model) -> None:
    """Types of all values, for files that were written without them."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """What a graph takes, holds and computes."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def is_full(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is float32."""
    return value is not None and value.dtype == FULL


def is_half(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is in half precision."""
    return value is not None and any(value.dtype == known.dtype for known in FORMATS.values())


def is_fixed(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is a weight."""
    return value is not None and value.const_value is not None


def weight(value: ir.Value | None) -> Array | None:
    """The numbers of a weight in float32."""
    tensor = value.const_value if is_full(value) else None
    return None if tensor is None else tensor.numpy()
