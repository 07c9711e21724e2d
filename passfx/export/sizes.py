"""Shape arithmetic of a written graph: done where it is known, short where it is not."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants_ir

from passfx.export.shapes import (
    BROADCASTING,
    RECURRENT,
    Shapes,
    Size,
    Sizes,
    all_numbers,
    broadcast,
    same,
)

_SAME_FILL = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def simplify_sizes(model: ir.Model) -> None:
    """Rewrite what a graph computes from its sizes alone, in place.

    1. sizes that are numbers become constants, and what is computed from these too;
    2. the shape of a Reshape becomes a constant, with 0 for a size that the input has in the same
       place and −1 for one more; that of an Expand has 1 where the input has the size already;
       either is left out where it changes nothing, an Expand also where all that reads it
       broadcasts; an image of known size in a batch that varies is resized by constant scales;
    3. equal vectors of sizes are computed once;
    4. an initial state of zeros is left out, which means the same;
    5. a transpose of the last two axes, between a reshape that makes one axis of those before them
       and one that undoes it, becomes one Transpose.
    """
    graph = _Graph(model.graph)
    for node in model.graph:
        graph.shapes.note(node)
    for node in tuple(model.graph):
        graph.rewrite(node)
    if not graph.rewrites:
        return
    fold_constants_ir(model)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)


@dataclass
class _Graph:
    """A graph while it is rewritten.

    Attributes:
        constants: those that were added, by their rank and elements.
        vectors: the first value that holds some sizes of which one varies, by its rank and them.
        rewrites: how many nodes were rewritten.
    """

    graph: ir.Graph
    shapes: Shapes = field(default_factory=Shapes)
    constants: dict[Any, ir.Value] = field(default_factory=dict)
    vectors: dict[Any, ir.Value] = field(default_factory=dict)
    rewrites: int = 0

    def rewrite(self, node: ir.Node) -> None:
        """Note what a node computes, and write it shorter."""
        self.shapes.note(node)
        sizes = self.shapes.elements(node.outputs[0])
        if sizes is not None:
            self._write_vector(node.outputs[0], sizes)
        elif node.op_type == "Reshape":
            self._write_reshape(node)
        elif node.op_type == "Expand":
            self._write_expand(node)
        elif node.op_type in RECURRENT:
            self._leave_out_zeros(node)
        elif node.op_type == "Resize":
            self._write_scales(node)

    def _write_vector(self, value: ir.Value, sizes: Sizes) -> None:
        """A constant, or the value that holds the same sizes already."""
        shape = self.shapes.of(value)
        if shape is None or None in sizes or len(shape) > 1:
            return
        numbers = all_numbers(sizes)
        key = len(shape), sizes
        if numbers is not None:
            self._use(value, self._constant(numbers, len(shape)))
        elif self.vectors.setdefault(key, value) is not value:
            self._use(value, self.vectors[key])

    def _write_reshape(self, node: ir.Node) -> None:
        source, target = node.inputs[0], node.inputs[1]
        given, result = self.shapes.of(source), self.shapes.of(node.outputs[0])
        assert source is not None
        if given is None or result is None or 0 in result or 0 in given:
            return
        turned = self._turned(node, result)
        if turned is not None:
            source, order = turned
            self._replace(node, ir.node("Transpose", [source], {"perm": order}, name=node.name))
        elif _equal(given, result):
            self._use(node.outputs[0], source)
        elif self.shapes.numbers(target) is None:
            numbers = [_in_place(given, axis, size) for axis, size in enumerate(result)]
            if numbers.count(-1) < 2:
                node.attributes.pop("allowzero", None)
                node.replace_input_with(1, self._constant(numbers, 1))
                self.rewrites += 1

    def _turned(self, node: ir.Node, result: Sizes) -> tuple[ir.Value, list[int]] | None:
        """What a reshape, a transpose of the last axes and `node` transpose, and how."""
        swap = _producer(node, "Transpose")
        merge = swap and _producer(swap, "Reshape")
        if not swap or not merge or [*swap.attributes["perm"].as_ints()] != [0, 2, 1]:
            return None
        source = merge.inputs[0]
        given, merged = self.shapes.of(source), self.shapes.of(merge.outputs[0])
        if not source or not given or not merged or not 3 <= len(given) == len(result):
            return None
        wanted = (*given[:-2], given[-1], given[-2])
        if not _equal(merged[1:], given[-2:]) or not _equal(result, wanted):
            return None
        rank = len(given)
        return source, [*range(rank - 2), rank - 1, rank - 2]

    def _write_expand(self, node: ir.Node) -> None:
        source, target = node.inputs
        given, result = self.shapes.of(source), self.shapes.of(node.outputs[0])
        assert source is not None
        if given is None or result is None:
            return
        known = (*[1] * (len(result) - len(given)), *given)
        is_kept = [*map(same, known, result)]
        stretched = self._stretched(node.outputs[0])
        if _equal(given, result) or stretched is not None:
            self._use(node.outputs[0], source)
            for value in stretched or ():
                self.shapes.forget(value)  # it follows from what is read now
            return
        pairs = zip(is_kept, result, strict=True)
        numbers = all_numbers(tuple(1 if kept else size for kept, size in pairs))
        if numbers is not None and self.shapes.numbers(target) is None:
            node.replace_input_with(1, self._constant(numbers, 1))
            self.rewrites += 1

    def _stretched(self, value: ir.Value) -> list[ir.Value] | None:
        """What is computed from a value alone, where all of it is stretched to its shape anyway.

        That is so where each reader is an operator that broadcasts, and its other operands give its
        result the shape that it has, or are constants and its own readers are of that kind.
        """
        shape, found = self.shapes.of(value), list[ir.Value]()
        if value.is_graph_output() or not value.uses():
            return None
        for reader in value.consumers():
            (result,) = reader.outputs[:1]
            others = [item for item in reader.inputs if item is not value]
            if reader.op_type not in BROADCASTING or reader.graph is not self.graph:
                return None
            if _equal(broadcast([self.shapes.of(item) for item in others]), self.shapes.of(result)):
                continue
            inner = None
            if _equal(shape, self.shapes.of(result)) and all(map(_is_constant, others)):
                inner = self._stretched(result)
            if inner is None:
                return None
            found += [result, *inner]
        return found

    def _leave_out_zeros(self, node: ir.Node) -> None:
        for index in RECURRENT[node.op_type]:
            if index < len(node.inputs) and _is_zero(node.inputs[index]):
                node.replace_input_with(index, None)
                self.rewrites += 1

    def _write_scales(self, node: ir.Node) -> None:
        """Constant scales for a Resize of an image whose size is known, in a batch that varies."""
        sizes = node.inputs[3] if len(node.inputs) > 3 else None
        given, result = self.shapes.of(node.inputs[0]), self.shapes.of(node.outputs[0])
        if sizes is None or given is None or result is None or self.shapes.numbers(sizes):
            return
        policy = node.attributes.get("keep_aspect_ratio_policy")
        if "axes" in node.attributes or (policy and policy.as_string() != "stretch"):
            return
        scales = [_scale(*pair) for pair in zip(given, result, strict=True)]
        known = [scale for scale in scales if scale is not None]
        if len(known) == len(scales):
            name = self._free("_".join(["scales", *map(str, known)]))
            array = ir.tensor(np.array(known, dtype=np.float32), name=name)
            value = ir.val(name, ir.DataType.FLOAT, [len(known)], const_value=array)
            self.graph.register_initializer(value)
            node.replace_input_with(2, value)
            node.replace_input_with(3, None)
            self.rewrites += 1

    def _constant(self, numbers: list[int], rank: int) -> ir.Value:
        key = rank, tuple(numbers)
        if key not in self.constants:
            array = np.array(numbers, dtype=np.int64).reshape([-1] * rank)
            name = self._free("_".join(["sizes" if rank else "size", *map(str, numbers)]))
            value = ir.val(name, ir.DataType.INT64, array.shape, const_value=ir.tensor(array))
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]

    def _free(self, name: str) -> str:
        """A name that no constant has."""
        while name in self.graph.initializers:
            name += "_"
        return name

    def _use(self, value: ir.Value, instead: ir.Value) -> None:
        """Let what reads a value read another one; an output of the graph keeps its own."""
        if value.uses() and not value.is_graph_output():
            value.replace_all_uses_with(instead)
            self.rewrites += 1

    def _replace(self, old: ir.Node, new: ir.Node) -> None:
        new.metadata_props.update(old.metadata_props)
        ir.convenience.replace_nodes_and_values(
            self.graph, old, [old], [new], old.outputs, new.outputs
        )
        self.shapes.note(new)
        self.rewrites += 1


def _scale(given: Size, result: Size) -> np.float32 | None:
    """What ONNX Runtime would make of two sizes, where it leads from one to the other for all."""
    if same(given, result):
        return np.float32(1)
    if not isinstance(given, int) or not isinstance(result, int) or not given:
        return None
    scale = np.float32(result) / np.float32(given)
    found = {int(np.float32(given) * scale), int(given * float(scale))}
    return scale if found == {result} else None


def _equal(a: Sizes | None, b: Sizes | None) -> bool:
    """Whether two shapes are known to be equal."""
    return a is not None and b is not None and len(a) == len(b) and all(map(same, a, b))


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _producer(node: ir.Node, kind: str) -> ir.Node | None:
    """The node that computes the first input of another one, where it is of this kind."""
    source = node.inputs[0]
    found = None if source is None else source.producer()
    return found if found is not None and found.op_type == kind else None


def _in_place(given: Sizes, axis: int, size: Size) -> int:
    """A size as a Reshape takes it: a number, 0 for what the input has there, −1 for the rest."""
    if isinstance(size, int):
        return size
    return 0 if axis < len(given) and same(given[axis], size) else -1


def _is_zero(value: ir.Value | None) -> bool:
    """Whether all elements of a value are zeros, whatever its shape is."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None:
            return False
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            return fill is None or not fill.as_tensor().numpy().any()
        value = node.inputs[0] if node.op_type in _SAME_FILL else None
    return value is not None and not value.is_graph_input() and not _array(value).any()


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
