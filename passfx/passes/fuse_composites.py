"""Composite operators that are written out."""

from collections.abc import Iterator

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from passfx.analysis.composites import Composite, Meaning, composites
from passfx.analysis.formulas import Region, regions
from passfx.graph.editor import Editor, Match, refuse
from passfx.graph.ops import aten
from passfx.graph.query import constant, is_call
from passfx.graph.shapes import dtypes, known_tensor
from passfx.passes.base import Found, Pass

_RMS_NORM_OPERATORS = 6  # in a file of an opset that has no such operator
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)


class FuseComposites(Pass):
    """Replace a composite operator that is written out by the operator.

        x·relu6(x + 3)/6 = hardswish(x)
        (x − mean(x))/√(var(x) + ε)·w + b = layer_norm(x)

    Recognised are relu, leaky_relu, elu, sigmoid, hardsigmoid, silu, hardswish, mish, both gelus,
    softmax, log_softmax, logsumexp, norms of vectors, layer norms and RMS norms. A layer norm over
    the channels of an image gets a transpose on either side. What is compared are formulas in
    normal form: x·x, x² and square(x), division and multiplication, and any order of factors and
    terms are the same. A number is exact if it is, to a unit in the last place of float32, what
    is meant (0.7978845608 as √(2/π)); one of a tensor, in the dtype of that.

    Kept, or refused:
    1. an operator in between that others read too;
    2. numbers that are near, such as 1.41421 for √2;
    3. what overflows where the operator does not: exp(x)/sum(exp(x)), unless the maximum is
       subtracted first, and log(1 + exp(x));
    4. a layer norm whose variance is divided by n − 1, or that adds ε outside of the root;
    5. logsumexp, norms of vectors and x·tanh(log(1 + exp(x))) on a CPU, where ONNX Runtime takes
       longer for the operator; an RMS norm that is shorter as it is, or not over the last axes;
    6. relu by comparison, which makes 0 of NaN.
    """

    name = "fuse-composites"

    def matches(self, graph: Graph) -> Iterator[Found]:
        for node in reversed(list(graph.nodes)):  # what is part of a larger one is not met again
            if not node._erased:
                yield self.match(node)

    def match(self, node: Node) -> Found:
        refused: Found = None
        for region in regions(node):  # the smallest first: a norm takes in a scale before it too
            found = self._found(region)
            if isinstance(found, Match):
                return found
            refused = refused or found
        return refused

    def _found(self, region: Region) -> Found:
        node, dtype = region.nodes[-1], known_tensor(region.source).dtype
        if not dtype.is_floating_point or dtypes(region.nodes) - {torch.bool} != {dtype}:
            return None
        if (formula := region.formula) is None:
            return None
        calls = [item for item in region.nodes if is_call(item)]
        for composite in composites().get(formula.outline, ()):
            meaning = composite.meaning(formula)
            written = len(calls) == 1 and is_call(node, composite.target.overloadpacket)
            if meaning is None or written or not _fits(composite, meaning, region.source):
                continue
            reason = self._reason(composite, meaning, region)
            if reason is not None:
                return refuse(node, reason)
            what = f"{len(calls)} operators are {composite}"
            data = region.source, composite, meaning
            any_size = len(meaning.axes) < 2  # else those of a layer norm
            return Match(node, region.nodes, what, data, any_size, meant=region.meant)
        return None

    def _reason(self, composite: Composite, made: Meaning, region: Region) -> str | None:
        """Why what looks like a composite is kept as it is."""
        if not made.is_exact:
            return f"it is {composite} but for a number that is off by more than rounding"
        if composite.refusal or (composite.cpu_refusal and not self.target.is_gpu):
            return composite.refusal or composite.cpu_refusal
        if composite.target == aten.rms_norm.default and made.weight is None:
            count = sum(2 if is_call(item, aten.rsqrt) else 1 for item in region.nodes)
            if count < _RMS_NORM_OPERATORS:
                return f"it is {count} operators, and would be {_RMS_NORM_OPERATORS}"
        if region.shared is not None:
            return f"{region.shared.name}, a part of {composite}, is also read by others"
        return None

    def rewrite(self, editor: Editor, match: Match) -> Node:
        source, composite, made = match.data
        if composite.target in _NORMS:
            return _norm(editor, source, composite.target, made)
        given = composite.arguments(made)
        return editor.call(composite.target, source, *given, **dict(composite.keywords))


def _fits(composite: Composite, made: Meaning, source: Node) -> bool:
    """Whether the operator takes these axes, and the shapes of a weight and a bias."""
    if composite.target in (aten.softmax.int, aten.log_softmax.int):
        return len(made.axes) == 1
    if composite.target not in _NORMS:
        return True
    shape = known_tensor(source).shape
    is_one = len(made.axes) == 1 and composite.target == aten.layer_norm.default
    if not is_one and not _is_last(made, source):
        return False  # an RMS norm between transposes is more operators than written out
    return all(isinstance(shape[axis], int) for axis in made.axes) and all(
        read is None or _is_along(read, made, source) for read in (made.weight, made.bias)
    )


def _is_last(made: Meaning, source: Node) -> bool:
    count = known_tensor(source).ndim
    return made.axes == tuple(range(count - len(made.axes), count))


def _is_along(read: Node, made: Meaning, source: Node) -> bool:
    """Whether a constant is of the dtype of a value, and differs along some of its axes alone."""
    stored, x = known_tensor(read), known_tensor(source)
    if stored.dtype != x.dtype or stored.ndim > x.ndim:
        return False
    sizes = enumerate(stored.shape, x.ndim - stored.ndim)
    return all(size == 1 or (axis in made.axes and size == x.shape[axis]) for axis, size in sizes)


def _norm(editor: Editor, source: Node, target: OpOverload, made: Meaning) -> Node:
    """A norm over the last axes, which the others are moved before if need be."""
    x = known_tensor(source)
    sizes = [int(x.shape[axis]) for axis in made.axes]
    last = _is_last(made, source)
    order = [*(axis for axis in range(x.ndim) if axis not in made.axes), *made.axes]
    back = [order.index(axis) for axis in range(x.ndim)]

    def along(read: Node | None) -> Node | None:
        if read is None or list(known_tensor(read).shape) == sizes:
            return read
        stored = constant(read)
        shape = [1] * (x.ndim - stored.ndim) + list(stored.shape)
        kept = stored.reshape([shape[axis] for axis in made.axes]).expand(sizes)
        return editor.constant(kept, stored.dtype, str(read.target))

    tensors = [
        along(made.weight),
        *([along(made.bias)] if target == aten.layer_norm.default else []),
    ]
    moved = source if last else editor.call(aten.permute.default, source, order)
    normed = editor.call(target, moved, sizes, *tensors, made.number)
    return normed if last else editor.call(aten.permute.default, normed, back)
