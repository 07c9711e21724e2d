"""Mixed precision: an ONNX model in fp16 or bf16, but for the operators that need float32."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from passfx.errors import ExportError
from passfx.export import casts
from passfx.export.arrays import Array
from passfx.export.base import FilePass, module_path
from passfx.export.casts import FORMATS, Conversion, Format, is_fixed, is_full
from passfx.export.rounding import MOVES, Run, measure_losses, only_sum
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
       numbers; the loss is max |difference| / max |result|, and of weights that are too small for
       the format the same in each channel by itself;
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
        """One rewrite for the whole model or none; a refusal for each that stays in float32.

        Raises:
            ExportError: the target has no kernels for the format, or nothing can be converted.
        """
        check_precision(self.precision, self.target)
        chosen = FORMATS[self.precision]
        accuracy = 8 * chosen.roundoff if self.accuracy is None else self.accuracy
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        casts.infer_types(model)
        choice = _Choice(model, chosen)
        choice.keep_what_has_no_kernel()
        choice.keep_what_loses(self.samples, self.execute, accuracy)
        choice.settle_moves(self.half_io)
        lowered = [node for node in choice.nodes if node not in choice.kept]
        if not lowered:
            if any(value.dtype == chosen.dtype for value in casts.all_values(model.graph)):
                return [], choice.refusals()
            reasons = (f": {refusal.reason}" for refusal in choice.refusals())
            because = next(reasons, ", it has none in float32")
            raise ExportError(f"no operator of this model can be in {chosen.name}{because}")
        conversion = Conversion(model, chosen, lowered, self.half_io)
        conversion.apply()
        counts = f"{len(lowered)} of {len(choice.nodes)} operators in {chosen.name}"
        return [Rewrite("graph", "", f"{counts}, {conversion.casts} casts")], choice.refusals()


class _Choice:
    """Which float32 operators of a model stay as they are, and why."""

    def __init__(self, model: ir.Model, chosen: Format) -> None:
        self._model = model
        self._format = chosen
        self.nodes = dict.fromkeys(filter(_is_float, model.graph))
        self.kept: dict[ir.Node, str] = {}

    def refusals(self) -> list[Refusal]:
        """The operators that stay in float32 for a reason of their own."""
        return [
            Refusal(str(node.name), module_path(node), f"{node.op_type} stays in float32: {reason}")
            for node, reason in self.kept.items()
            if reason
        ]

    def keep_what_has_no_kernel(self) -> None:
        nodes = self._model.graph.all_nodes()
        inner = {read for node in nodes if node.graph != self._model.graph for read in node.inputs}
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

    def _no_kernel(self, node: ir.Node) -> str | None:
        name = self._format.name
        if node.domain not in ("", "ai.onnx"):
            return f"{node.domain} operators are not converted"
        if any(isinstance(item.value, ir.Graph) for item in node.attributes.values()):
            return "it has a graph of its own"
        is_bf16 = self._format.dtype == ir.DataType.BFLOAT16
        if node.op_type in _NO_FP16 or (is_bf16 and node.op_type not in _BF16_ON_CUDA):
            return f"ONNX Runtime has no {name} kernel for it"
        _, outputs = casts.convertible(self._model, node, self._format)
        if not outputs:
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
        for node, (own, inputs, reach, vanished) in losses.items():
            # What is only added to something larger need not be more exact than the sum.
            total = only_sum(node)
            scale = max(reach, losses[total].reach) if total in losses else reach
            reason = self._unfit(node, reach)
            if reason is None and not own <= accuracy * scale:
                reason = f"it loses {_ratio(own, reach)} by itself"
            if reason is None and not vanished <= accuracy:
                reason = (
                    f"weights are too small for {self._format.name}: a channel loses {vanished:.0%}"
                )
            if reason is not None:
                self.kept[node] = reason
            elif not inputs <= _INPUTS_COUNT * accuracy * scale:
                self.kept[node] = f"it loses {_ratio(inputs, reach)} where its inputs are rounded"
                for before in node.predecessors():
                    if before in self.nodes:
                        because = f"{node.name} loses too much where it is rounded"
                        self.kept.setdefault(before, because)

    def _unfit(self, node: ir.Node, reach: float) -> str | None:
        """Why a result that reaches so far, or a weight, does not fit the format."""
        name, most = self._format.name, self._format.largest
        if not reach * _MARGIN <= most:
            return f"its result reaches {reach:.1e}; {name} ends at {most:.3g} (margin {_MARGIN})"
        for values in map(casts.weight, node.inputs):
            if values is not None and values.size and not np.abs(values).max() <= most:
                return f"a weight reaches {np.abs(values).max():.1e}; {name} ends at {most:.3g}"
        return None

    def settle_moves(self, half_io: bool) -> None:
        """Keep what only moves data between what is kept: all at first, then fewer."""
        moves = [node for node in self.nodes if node.op_type in MOVES and node not in self.kept]
        self.kept |= dict.fromkeys(moves, "")
        while leaving := [
            node for node in moves if node in self.kept and not self._is_among_kept(node, half_io)
        ]:
            for node in leaving:
                del self.kept[node]

    def _is_among_kept(self, node: ir.Node, half_io: bool) -> bool:
        before = [item.producer() for item in node.inputs if is_full(item) and not is_fixed(item)]
        is_output = any(value.is_graph_output() for value in node.outputs)
        return (
            bool(before)
            and all(self._is_kept(item, half_io) for item in before)
            and all(self._is_kept(reader, half_io) for reader in node.successors())
            and not (is_output and half_io)
        )

    def _is_kept(self, node: ir.Node | None, half_io: bool) -> bool:
        """Whether a value is float32 by itself: the model's input has no producer."""
        return not half_io if node is None else node in self.kept or node not in self.nodes


def _is_float(node: ir.Node) -> bool:
    """Whether a node computes float32, other than by widening."""
    is_widening = node.op_type == "Cast" and casts.is_half(node.inputs[0])
    return any(map(is_full, node.outputs)) and not is_widening


def _elements(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        return 0
    return math.prod(size for size in value.shape if isinstance(size, int))


def _weights(node: ir.Node) -> int:
    return sum(map(_elements, filter(is_fixed, node.inputs)))


def _reduced(node: ir.Node) -> int:
    """How many elements make one result of a reduction; sizes that vary do not count."""
    return _elements(node.inputs[0]) // max(1, _elements(node.outputs[0]))


def _ratio(error: float, reach: float) -> str:
    return f"{error / reach:.1e}" if reach else "everything"
