"""Mixed precision: an ONNX model in fp16 or bf16, but for the operators that need float32."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from passfx.errors import ExportError
from passfx.export.arrays import Array
from passfx.export.base import FilePass
from passfx.export.epilogue import module_path
from passfx.export.rounding import (
    FORMATS,
    FULL,
    MOVES,
    Format,
    Run,
    cast_to,
    float_outputs,
    infer_types,
    is_fixed,
    is_full,
    measure_losses,
)
from passfx.export.settings import check_precision
from passfx.record import Refusal, Rewrite
from passfx.target import CUDA, Target

_MARGIN = 2
_INPUTS_COUNT = 4  # how much more may be lost by rounding the inputs
_LARGE_REDUCTION = 4096


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_REDUCTIONS = frozenset({
    "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceProd", "GlobalAveragePool",
})  # fmt: skip
# From ONNX Runtime's table of kernels (docs/OperatorKernels.md), at opsets below 22.
_NO_FP16 = frozenset({"EyeLike", "GridSample", "NonMaxSuppression", "Range", "RoiAlign"})
_BF16_ON_CUDA = frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "Gelu", "Gemm", "Identity", "LayerNormalization", "MatMul", "Max", "Min",
    "Mul", "Neg", "Pow", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sign", "Slice", "Softmax",
    "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze",
    "Where",
})  # fmt: skip


@dataclass(frozen=True)
class LowerPrecision(FilePass):
    """Write a float32 model in fp16 or bf16, but for the operators that need float32.

    What each operator loses is measured on samples (rounding.py). What stays in float32, and is
    reported with the reason:

    1. an operator whose result or weights do not fit: max |·| times a margin of 2 exceeds the
       largest number of the format;
    2. one that loses more than `accuracy` by itself: weights that become subnormal, exp of large
       numbers; the loss is max |difference| / max |result|;
    3. one that loses more than four times that by the rounding of its inputs (x − mean(x),
       variances), and the operators that compute those inputs;
    4. resizing, and reductions over more than 4096 elements;
    5. operators that have no kernel for the format in ONNX Runtime, or no such type in the opset.

    onnxruntime.transformers.float16 is not used: it clamps what does not fit without a word, knows
    no bfloat16, and would need the same list of operators.

    What only moves data stays in float32 where its inputs and its readers do. A value is cast once,
    where it is first needed in the other precision, so that no two casts cancel.

    Attributes:
        precision: "fp16" or "bf16".
        samples: inputs by name, from which ranges and losses are taken.
        execute: runs a model on samples without graph optimisation, its outputs in order.
        target: whose kernels count.
        half_io: inputs and outputs are converted too; else they stay in float32.
        accuracy: the relative error that one operator may add; by default 8 units of roundoff,
            0.4 % for fp16, which only what is ill-conditioned exceeds.
    """

    name = "lower-precision"

    precision: str
    samples: Sequence[Mapping[str, Array]]
    execute: Run
    target: Target = CUDA
    half_io: bool = False
    accuracy: float | None = None

    def rewrite(self, model: ir.Model) -> tuple[list[Rewrite], list[Refusal]]:
        """One rewrite for the whole model, none if nothing was converted.

        Raises:
            ExportError: the target has no kernels for the format, or nothing can be converted.
        """
        check_precision(self.precision, self.target)
        chosen = FORMATS[self.precision]
        accuracy = 8 * chosen.roundoff if self.accuracy is None else self.accuracy
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        infer_types(model)
        plan = _Plan(model, chosen)
        plan.keep_what_has_no_kernel()
        plan.keep_what_loses(self.samples, self.execute, accuracy)
        plan.settle_moves(self.half_io)
        lowered = [node for node in plan.nodes if node not in plan.kept]
        if not lowered:
            if any(value.dtype == chosen.dtype for value in _values(model.graph)):
                return [], plan.refusals()
            reasons = dict.fromkeys(refusal.reason for refusal in plan.refusals())
            because = f": {next(iter(reasons))}" if reasons else ", it has none in float32"
            raise ExportError(f"no operator of this model can be in {chosen.name}{because}")
        casts = _Conversion(model, chosen, set(lowered), self.half_io).apply()
        what = f"{len(lowered)} of {len(plan.nodes)} operators in {chosen.name}, {casts} casts"
        return [Rewrite("graph", "", what, (), (), None)], plan.refusals()


class _Plan:
    """Which float32 operators of a model stay as they are, and why."""

    def __init__(self, model: ir.Model, chosen: Format) -> None:
        self._model = model
        self._format = chosen
        self.nodes = dict.fromkeys(node for node in model.graph if _is_float(node))
        self.kept: dict[ir.Node, str] = {}

    def refusals(self) -> list[Refusal]:
        """The operators that stay in float32 for a reason of their own."""
        return [
            Refusal(str(node.name), module_path(node), f"{node.op_type} stays in float32: {reason}")
            for node, reason in self.kept.items()
            if reason
        ]

    def keep_what_has_no_kernel(self) -> None:
        inner = {read for node in self._inner_nodes() for read in node.inputs}
        for node in self.nodes:
            reason = self._no_kernel(node)
            if reason is None and inner.intersection(node.outputs):
                reason = "an inner graph reads it"
            if reason is not None:
                self.kept[node] = reason
        products = [node for node in self.nodes if node.op_type in _PRODUCTS]
        without = [node for node in products if node in self.kept]
        if sum(map(_weights, without)) > sum(map(_weights, products)) / 2:
            ((name, count),) = Counter(node.op_type for node in without).most_common(1)
            raise ExportError(
                f"ONNX Runtime's CUDA provider has no {self._format.name} kernel for {name} "
                f"({count} in this model); use --precision fp16"
            )

    def _inner_nodes(self) -> Iterator[ir.Node]:
        return (node for node in self._model.graph.all_nodes() if node.graph != self._model.graph)

    def _no_kernel(self, node: ir.Node) -> str | None:
        name = self._format.name
        if node.domain not in ("", "ai.onnx"):
            return f"{node.domain} operators are not converted"
        if any(isinstance(item.value, ir.Graph) for item in node.attributes.values()):
            return "it has a graph of its own"
        is_bf16 = self._format.dtype == ir.DataType.BFLOAT16
        if node.op_type in _NO_FP16 or (is_bf16 and node.op_type not in _BF16_ON_CUDA):
            return f"ONNX Runtime has no {name} kernel for it"
        if not _convertible(self._model, node, self._format):
            return f"it takes no {name} at this opset"
        if node.op_type == "Resize":
            return "coordinates and weights of interpolation lose too much"
        if node.op_type in _REDUCTIONS and _reduced(node) > _LARGE_REDUCTION:
            return f"it reduces {_reduced(node)} elements"
        return None

    def keep_what_loses(
        self, samples: Sequence[Mapping[str, Array]], run: Run, accuracy: float
    ) -> None:
        measured = [node for node in self.nodes if node not in self.kept]
        losses = measure_losses(self._model, measured, self._format, samples, run)
        for node, (own, inputs, reach) in losses.items():
            # What is only added to something larger need not be more exact than the sum.
            total = _only_sum(node)
            scale = max(reach, losses[total].reach) if total in losses else reach
            reason = self._unfit(node, reach)
            if reason is None and not own <= accuracy * scale:
                reason = f"it loses {_ratio(own, reach)} by itself"
            if reason is not None:
                self.kept[node] = reason
            elif not inputs <= _INPUTS_COUNT * accuracy * scale:
                self.kept[node] = f"it loses {_ratio(inputs, reach)} where its inputs are rounded"
                for read in node.inputs:
                    before = read.producer() if read is not None else None
                    if before in self.nodes and before not in self.kept:
                        self.kept[before] = f"{node.name} loses too much where it is rounded"

    def _unfit(self, node: ir.Node, reach: float) -> str | None:
        """Why a result that reaches so far, or a weight, does not fit the format."""
        name, most = self._format.name, self._format.largest
        if not reach * _MARGIN <= most:
            return f"its result reaches {reach:.1e}; {name} ends at {most:.3g} (margin {_MARGIN})"
        for read in node.inputs:
            values = _constant(read)
            if values is not None and values.size and not np.abs(values).max() <= most:
                return f"a weight reaches {np.abs(values).max():.1e}; {name} ends at {most:.3g}"
        return None

    def settle_moves(self, half_io: bool) -> None:
        """Keep what only moves data between what is kept: all at first, then fewer."""
        candidates = {
            node for node in self.nodes if node.op_type in MOVES and node not in self.kept
        }
        self.kept |= dict.fromkeys(candidates, "")
        while leaving := [node for node in candidates if not self._is_among_kept(node, half_io)]:
            candidates -= set(leaving)
            for node in leaving:
                del self.kept[node]

    def _is_among_kept(self, node: ir.Node, half_io: bool) -> bool:
        before = [
            read
            for read in node.inputs
            if read is not None and is_full(read) and not is_fixed(read)
        ]
        readers = [reader for value in node.outputs for reader in value.consumers()]
        is_output = any(value.is_graph_output() for value in node.outputs)
        return (
            bool(before)
            and all(self._is_kept(read.producer(), half_io) for read in before)
            and all(reader in self.kept or reader not in self.nodes for reader in readers)
            and not (is_output and half_io)
        )

    def _is_kept(self, node: ir.Node | None, half_io: bool) -> bool:
        """Whether a value is float32 by itself: the model's input has no producer."""
        return not half_io if node is None else node in self.kept or node not in self.nodes


class _Conversion:
    """Gives every operator its inputs in its own precision."""

    def __init__(
        self, model: ir.Model, chosen: Format, lowered: set[ir.Node], half_io: bool
    ) -> None:
        self._graph = model.graph
        self._format = chosen
        self._lowered = lowered
        self._half_io = half_io
        self._converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._casts = 0
        self._floats = {item for item in _values(model.graph) if is_full(item)}
        self._convertible = {node: _convertible(model, node, chosen) for node in model.graph}

    def apply(self) -> int:
        """Convert; the number of casts that it took."""
        graph, half = self._graph, self._format.dtype
        if self._half_io:
            for value in graph.inputs:
                if value in self._floats:
                    value.type = ir.TensorType(half)
        for node in list(graph):
            convertible = self._convertible[node]
            is_lowered = node in self._lowered
            if _is_indifferent(node):
                continue
            for index, read in enumerate(node.inputs):
                if read is not None and read in self._floats:
                    wanted = half if is_lowered and index in convertible.inputs else FULL
                    node.replace_input_with(index, self._as(read, wanted, node))
            if is_lowered:
                for index in convertible.outputs:
                    node.outputs[index].type = ir.TensorType(half)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(half))
        for index, value in enumerate(graph.outputs):
            if value in self._floats:
                graph.outputs[index] = self._output(value)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
        return self._casts

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None) -> ir.Value:
        """A value in a precision, for a reader: itself, or one conversion for all readers."""
        if value.dtype == dtype:
            return value
        key = value, dtype
        if key not in self._converted:
            array = _constant(value)
            name = f"{value.name}_{self._format.name if dtype != FULL else 'float32'}"
            if array is not None:
                tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
                self._converted[key] = ir.Value(
                    name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor
                )
                self._graph.register_initializer(self._converted[key])
            else:
                cast = cast_to(value, dtype)
                cast.name, cast.outputs[0].name = f"{name}_cast", name
                if reader is None:
                    self._graph.append(cast)
                else:
                    self._graph.insert_before(reader, cast)
                self._converted[key] = cast.outputs[0]
                self._casts += 1
        return self._converted[key]

    def _output(self, value: ir.Value) -> ir.Value:
        """An output in the precision of the interface, under its own name."""
        result = self._as(value, self._format.dtype if self._half_io else FULL, None)
        if result is not value and not value.is_graph_input():
            name = value.name
            value.name, result.name = f"{name}_{self._format.name}", name
        return result


@dataclass(frozen=True)
class _Convertible:
    """The inputs and outputs of an operator that its schema allows in a format, by index."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.outputs)


def _convertible(model: ir.Model, node: ir.Node, chosen: Format) -> _Convertible:
    if node.domain not in ("", "ai.onnx"):
        return _Convertible(frozenset(), frozenset())
    schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1), "")
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    wanted = f"tensor({chosen.name})"

    def indices(values: Sequence[ir.Value | None], formal: Sequence[Any]) -> frozenset[int]:
        types = [formal[min(index, len(formal) - 1)].type_str for index in range(len(values))]
        return frozenset(
            index
            for index, (value, kind) in enumerate(zip(values, types, strict=True))
            if value is not None and is_full(value) and wanted in allowed.get(kind, ())
        )

    return _Convertible(indices(node.inputs, schema.inputs), indices(node.outputs, schema.outputs))


def _is_float(node: ir.Node) -> bool:
    """Whether a node computes float32, other than by widening."""
    return bool(float_outputs(node)) and not (
        node.op_type == "Cast"
        and node.inputs[0] is not None
        and node.inputs[0].dtype in {chosen.dtype for chosen in FORMATS.values()}
    )


def _is_indifferent(node: ir.Node) -> bool:
    """Whether a node takes its input in any precision, with the same result."""
    return node.op_type in ("Shape", "Size") or (node.op_type == "Cast" and not float_outputs(node))


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or value.const_value is None or value.dtype != FULL:
        return None
    return value.const_value.numpy()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _elements(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        return 0
    return math.prod(size for size in value.shape if isinstance(size, int))


def _only_sum(node: ir.Node) -> ir.Node | None:
    """The addition that alone reads a result."""
    readers = [reader for value in node.outputs for reader in value.consumers()]
    is_sum = len(readers) == 1 and readers[0].op_type in ("Add", "Sub")
    return readers[0] if is_sum and not node.outputs[0].is_graph_output() else None


def _ratio(error: float, reach: float) -> str:
    return f"{error / reach:.1e}" if reach else "everything"


def _weights(node: ir.Node) -> int:
    return sum(_elements(read) for read in node.inputs if read is not None and is_fixed(read))


def _reduced(node: ir.Node) -> int:
    """How many elements make one result of a reduction; sizes that vary do not count."""
    return _elements(node.inputs[0]) // max(1, _elements(node.outputs[0]))
