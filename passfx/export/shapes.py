"""What is known of the shapes in a written graph, and of the vectors that hold them.

A size is a number, or the name of what varies; None where nothing is known of it. What the exporter
computes while the file runs (Shape, Gather, Concat, …) is followed as a tuple of such sizes.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir

Size = int | str | None
Sizes = tuple[Size, ...]

_MOST_SIZES = 16  # a longer vector of integers is data
_SAME_ELEMENTS = ("Identity", "Squeeze", "Unsqueeze")
BROADCASTING = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where")
_UNARY = (
    *("Abs", "Cast", "Ceil", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu"),
    *("HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log"),
    *("LogSoftmax", "Mish", "Neg", "RMSNormalization", "Reciprocal", "Relu", "Sigmoid", "Sin"),
    *("Softmax", "Softplus", "Sqrt", "Tanh"),
)
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
}


class Shapes:
    """Shapes and vectors of sizes, noted node by node in the order of the graph."""

    def __init__(self) -> None:
        self._shapes: dict[ir.Value, Sizes] = {}
        self._elements: dict[ir.Value, Sizes] = {}

    def of(self, value: ir.Value | None) -> Sizes | None:
        """The shape of a value; None where not even its rank is known."""
        if value is None:
            return None
        return self._shapes[value] if value in self._shapes else _declared(value)

    def elements(self, value: ir.Value | None) -> Sizes | None:
        """The sizes that an integer scalar or vector holds, where it holds such."""
        if value is None:
            return None
        return self._elements[value] if value in self._elements else _stored(value)

    def numbers(self, value: ir.Value | None) -> list[int] | None:
        """What `elements` gives, where all of it are numbers."""
        return all_numbers(self.elements(value))

    def note(self, node: ir.Node) -> None:
        """Note what a node computes."""
        if node.domain not in ("", "ai.onnx") or not node.outputs:
            return
        for output, inferred in zip(node.outputs, self._inferred(node), strict=False):
            declared = _declared(output)
            if declared is not None and inferred is not None and len(declared) != len(inferred):
                # torch 2.11 gives the results of a recurrent layer the shape of the first one.
                output.shape = ir.Shape(inferred)
            shape = _merged(_declared(output), inferred)
            if shape is not None:
                self._shapes[output] = shape
        elements = self._computed(node)
        if elements is not None:
            self._elements[node.outputs[0]] = elements

    def forget(self, value: ir.Value) -> None:
        """Forget the shape of a value until its node is noted again."""
        value.shape = None
        self._shapes.pop(value, None)

    def _computed(self, node: ir.Node) -> Sizes | None:
        """The sizes that a node computes, if it computes any."""
        kind, result = node.op_type, node.outputs[0]
        if result.dtype not in (ir.DataType.INT64, None):
            return None
        if kind == "Shape":
            shape = self.of(node.inputs[0])
            start, end = integer(node, "start", 0), integer(node, "end", None)
            return None if shape is None else shape[start:end]
        given = [self.elements(item) for item in node.inputs if item is not None]
        first = given[0] if given else None
        if first is None or None in given[1:]:
            return None
        if kind in _SAME_ELEMENTS or (kind == "Cast" and integer(node, "to", 0) == 7):
            return first
        if kind == "Reshape" and len(self.of(result) or (0, 0)) < 2:
            return first
        if kind == "Concat":
            return tuple(size for sizes in given for size in sizes or ())
        operands = [all_numbers(sizes) for sizes in given[1:]]
        if kind == "Gather" and operands[0] is not None:
            return tuple(first[index] for index in operands[0])
        if kind == "Slice" and all(item is not None and len(item) == 1 for item in operands):
            start, end, *rest = (item[0] for item in operands if item)
            return first[slice(start, end, rest[1] if len(rest) > 1 else 1)]
        numbers = all_numbers(first)
        if kind in _ARITHMETIC and numbers is not None and operands[0] is not None:
            return tuple(map(int, _ARITHMETIC[kind](np.array(numbers), np.array(operands[0]))))
        return None

    def _inferred(self, node: ir.Node) -> Sequence[Sizes | None]:
        """The shapes of the results, as far as they follow from those of the inputs."""
        kind, given = node.op_type, [self.of(item) for item in node.inputs]
        first = given[0] if given else None
        if first is None:
            return [None] * len(node.outputs)
        if kind in _UNARY:
            return [first]
        if kind in BROADCASTING:
            return [broadcast(given)]
        if kind == "Transpose":
            return [tuple(first[axis] for axis in _order(node, len(first)))]
        if kind == "Expand":
            return [broadcast([first, self.elements(node.inputs[1])])]
        if kind == "Reshape":
            return [self._reshaped(node, first)]
        if kind == "MatMul" and given[1] is not None and min(map(len, (first, given[1]))) > 1:
            outer = broadcast([first[:-2], given[1][:-2]])
            return [None if outer is None else (*outer, first[-2], given[1][-1])]
        if kind == "Concat":
            return [_joined(given, integer(node, "axis", 0))]
        if kind == "Slice":
            axes = self.numbers(node.inputs[3]) if len(node.inputs) > 3 else None
            cut = {axis % len(first) for axis in axes or range(len(first))}
            return [tuple(None if axis in cut else size for axis, size in enumerate(first))]
        if kind in RECURRENT and given[1] is not None and len(first) == 3:
            directions, hidden = given[1][0], integer(node, "hidden_size", None)
            state = (directions, first[1], hidden)
            return [(first[0], *state), state, state]
        return [None] * len(node.outputs)

    def _reshaped(self, node: ir.Node, given: Sizes) -> Sizes | None:
        """The shape that a Reshape gives; of a size that it works out itself nothing is known."""
        target = self.elements(node.inputs[1])
        if target is None or integer(node, "allowzero", 0):
            return None if target is None else tuple(None if n == -1 else n for n in target)
        copied = zip_longest(target, given[: len(target)])
        return tuple(old if size == 0 else None if size == -1 else size for size, old in copied)


RECURRENT = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}  # the inputs that are initial states


def integer(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute that is a number."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def all_numbers(sizes: Sizes | None) -> list[int] | None:
    """Sizes, where all of them are numbers."""
    found = [size for size in sizes or () if isinstance(size, int)]
    return found if sizes is not None and len(found) == len(sizes) else None


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal."""
    return a is not None and a == b


def broadcast(shapes: Sequence[Sizes | None]) -> Sizes | None:
    """The shape that several shapes are broadcast to."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    columns = zip_longest(*(reversed(shape) for shape in known), fillvalue=1)
    return tuple(reversed([reduce(_broadcast_size, column) for column in columns]))


def _broadcast_size(a: Size, b: Size) -> Size:
    if same(a, b) or b == 1:
        return a
    if a == 1:
        return b
    return next((size for size in (a, b) if isinstance(size, int)), None)


def _joined(shapes: Sequence[Sizes | None], axis: int) -> Sizes | None:
    """The shape of a Concat."""
    known = [shape for shape in shapes if shape is not None]
    if len({len(shape) for shape in known}) != 1:
        return None
    result: Sizes | None = known[0]
    for shape in known[1:]:
        result = _merged(result, shape)
    parts = all_numbers(tuple(shape[axis] for shape in known))
    total = sum(parts) if parts is not None and len(known) == len(shapes) else None
    axis %= len(known[0])
    return (*(result or ())[:axis], total, *(result or ())[axis + 1 :])


def _merged(a: Sizes | None, b: Sizes | None) -> Sizes | None:
    """Two descriptions of one shape: a number before a name, a name before nothing."""
    if a is None or b is None or len(a) != len(b):
        return b if a is None else a
    return tuple(
        next((n for n in pair if isinstance(n, int)), pair[0] or pair[1])
        for pair in zip(a, b, strict=True)
    )


def _order(node: ir.Node, rank: int) -> Sequence[int]:
    found = node.attributes.get("perm")
    return [*reversed(range(rank))] if found is None else found.as_ints()


def _declared(value: ir.Value) -> Sizes | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _stored(value: ir.Value) -> Sizes | None:
    """The elements of a constant scalar or vector of integers."""
    stored = value.const_value
    if stored is None or stored.dtype != ir.DataType.INT64 or value.is_graph_input():
        return None
    if len(stored.shape) > 1 or stored.size > _MOST_SIZES:
        return None
    return tuple(map(int, stored.numpy().reshape(-1)))
