"""The local proof of a rewrite, on numbers."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, ops
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from passfx.errors import first_line
from passfx.graph.editor import Certificate, Edit
from passfx.graph.evaluate import evaluate, widen
from passfx.graph.ops import ARITHMETIC
from passfx.graph.query import constant, is_call, value
from passfx.graph.shapes import elements, hint, number_dtype
from passfx.verify.channels import channel_error, largest
from passfx.verify.draws import LONG, MANY, Draw, Layout, Sizes, draws, tensors_in
from passfx.verify.error import underflowed
from passfx.verify.values import Values, landmarks, reach_of

aten = ops.aten

CERTIFICATE_TOLERANCE = 1e-9
_LOST_UNITS = 4  # in the last place, which a channel may lose where a folded value is too small
_SEED = 0
_FEW = 1 << 16  # elements that cost nothing, so that the captured batch is taken
_SMALLEST = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
_GAIN = 1e4
_INTEGERS = ((-99, 99), (0, 8), (0, 2), (1, 3))  # indices and divisors take not all
_REFUSALS = (RuntimeError, IndexError, ValueError, TypeError)  # of sizes, or of values

# A proof at some sizes: its error; why the new nodes do not fit; None where the old do not run.
Outcome = float | str | None


def certify(edit: Edit) -> Certificate:
    """Run the removed nodes and the new ones in float64 on the same random inputs.

    New constants take part in full precision, so that the two agree to float64 rounding if the
    algebra is right; that each of them survives rounding to its own dtype is checked apart.

    The inputs have several small sizes, whatever the model's are (`draws`); where the old nodes
    do not take them, the next larger. An edit that is exact for the captured sizes alone, or whose
    operators take no others, is proven at those, in the smallest batch.
    """
    checked = unproven(edit)
    return checked if checked.failure or not edit.replacements else _Proof(edit).certificate()


def unproven(edit: Edit) -> Certificate:
    """No proof: that no folded value overflows its dtype is all that is checked."""
    for node, exact in edit.exact.items():
        if _largest(constant(node)) == math.inf and _largest(exact) < math.inf:
            return Certificate(None, f"a folded value overflows {constant(node).dtype}")
    for node, meant in edit.match.meant.items():
        if not _is_rounding(node, meant):
            return Certificate(None, f"{node.name} has other numbers than those it is taken for")
    return Certificate(None)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0


def _is_rounding(node: Node, meant: Any) -> bool:
    """Whether numbers are those of a constant or of a call, but for a unit in the last place."""
    if isinstance(meant, Tensor):
        stored = constant(node)
        unit = torch.finfo(stored.dtype).eps
        return torch.allclose(stored.double(), meant, rtol=unit, atol=0.0)
    unit = torch.finfo(number_dtype(node)).eps
    pairs = zip(tree_leaves(meant), tree_leaves(node.args), strict=True)
    numbers = (pair for pair in pairs if pair[0] is not pair[1])
    return all(math.isclose(*pair, rel_tol=unit) for pair in numbers)


class _Proof:
    """The proof of one edit: its nodes, the values they share, and what has been seen so far."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.old, self.new = edit.match.nodes, edit.added
        nodes = {*self.old, *self.new}
        reads = {read for node in nodes for read in node.all_input_nodes}
        reads.update(edit.replacements.values())
        self.given = {node: widen(exact) for node, exact in edit.exact.items()}
        for node, meant in edit.match.meant.items():
            if isinstance(meant, Tensor):
                self.given[node] = meant
        self.meant = {node: args for node, args in edit.match.meant.items() if is_call(node)}
        evaluate((read for read in reads if read.op == "get_attr"), self.given)
        self.frontier = edit.frontier
        self.inputs = [value(node) for node in self.frontier]
        self.generator = torch.Generator().manual_seed(_SEED)
        self.landmarks = landmarks(nodes)
        self.gain, self.refusal = 1.0, ""
        self.small = _underflowing(edit)
        self.underflow: str | None = None
        self.failing: tuple[Any, ...] | None = None
        self.integers = _ranges(nodes, self.inputs)

    def certificate(self) -> Certificate:
        """The largest error over all sizes, or the first failure."""
        any_size = self.edit.match.any_size
        found: list[Outcome] = []
        for last in self._orders():
            layout = Layout(self.inputs, last, any_size)
            if layout.sizes:
                found.append(self._small(layout))
            if found and isinstance(found[-1], float):
                break
        proven = [item for item in found if isinstance(item, float)]
        misfits = [item for item in found if isinstance(item, str)]
        if misfits and not proven and not self._is_flat():
            return Certificate(None, misfits[0], self.failing)
        if not any_size or not proven:
            own = self._own()
            if not isinstance(own, float):
                failure = own or f"the certificate cannot run: {self.refusal}"
                return Certificate(None, failure, self.failing)
            proven.append(own)
        error = max(proven)
        if not error <= CERTIFICATE_TOLERANCE:
            failure = f"relative error {error:.1e} on random inputs"
            return Certificate(error, failure, self.failing)
        return Certificate(error, self.underflow, self.failing)

    def _is_flat(self) -> bool:
        """Whether every input has one axis of a fixed size, which may be that of the channels."""
        shapes = [tuple(fake.shape) for fake in tensors_in(self.inputs)]
        return all(len(shape) < 2 and all(isinstance(n, int) for n in shape) for shape in shapes)

    def _orders(self) -> list[bool]:
        """Whether the channels are the last axis: both ways, the likelier first."""
        fakes = [*tensors_in(self.inputs)]
        if all(fake.ndim < 3 for fake in fakes):
            return [False]
        last = any(is_call(node, aten.linear, aten.layer_norm, aten.matmul) for node in self.old)
        return [last, not last]

    def _small(self, layout: Layout) -> Outcome:
        """The proof at several small sizes; nothing where the old nodes do not take them all.

        Some by chance they may, as where the size of an axis happens to be the channels'.
        """
        rank, outcome, found = layout.rank, None, list[float]()
        for least in _SMALLEST if rank else (0,):
            square, many = (least,) * rank, MANY if rank else LONG
            outcome = self._first(layout, [Draw(many, square), Draw(None, square)])
            if outcome is not None:
                break
        plan = iter(draws(rank, least, *reach_of(self.old)))
        while isinstance(outcome, float):
            found.append(outcome)
            draw = next(plan, None)
            if draw is None or not outcome <= CERTIFICATE_TOLERANCE:
                return max(found)
            outcome = self._first(layout, draw.alternatives())
        return outcome

    def _first(self, layout: Layout, choices: Iterable[Draw]) -> Outcome:
        """The proof at the first sizes that the old nodes take."""
        outcomes = (self._attempt(layout.at(choice)) for choice in choices)
        return next((outcome for outcome in outcomes if outcome is not None), None)

    def _own(self) -> Outcome:
        """The proof at the captured sizes, in the smallest batch at which it holds."""
        layout, outcome = Layout(self.inputs, False), None
        few = sum(math.prod(map(hint, fake.shape)) for fake in tensors_in(self.inputs)) <= _FEW
        for batch in (None,) if few else (1, None):
            outcome = self._attempt(layout.at(Draw(batch, ())))
            if isinstance(outcome, float) and outcome <= CERTIFICATE_TOLERANCE:
                break
        return outcome

    def _attempt(self, sizes: Sizes) -> Outcome:
        """The proof at some sizes, on values that the old nodes take."""
        for integers in self.integers:
            values = Values(self.generator, self.landmarks, self.gain, integers)
            try:
                drawn = [values.draw(fake, sizes) for fake in self.inputs]
                known = self.given | dict(zip(self.frontier, drawn, strict=True))
                evaluate(self.old, known, meant=self.meant)
            except _REFUSALS as refusal:
                self.refusal = first_line(refusal)
                continue
            if self._is_empty(known):
                continue
            outcome = self._compare(known)
            self._raise_gain(known)
            if isinstance(outcome, float) and outcome <= CERTIFICATE_TOLERANCE:
                return outcome
            if sizes.break_a_rule() or (isinstance(outcome, str) and sizes.is_single):
                return None
            self.failing = tuple(drawn)
            return outcome
        return None

    def _is_empty(self, known: dict[Node, Any]) -> bool:
        """Whether a result has no elements that has some as it was captured."""
        return any(
            not known[old].numel() and elements(old)
            for old in self.edit.replacements
            if isinstance(known[old], Tensor)
        )

    def _compare(self, known: dict[Node, Any]) -> float | str:
        try:
            evaluate(self.new, known)
        except _REFUSALS as failure:
            return f"the certificate cannot run: {first_line(failure)}"
        pairs = [(known[new], known[old]) for old, new in self.edit.replacements.items()]
        if any(_shapes(new) != _shapes(old) for new, old in pairs):
            return "relative error inf on random inputs"
        self._note_underflow(known)
        scale = largest(known[node] for node in self.old if is_call(node))
        return max(channel_error(new, old, scale) for new, old in pairs)

    def _note_underflow(self, known: dict[Node, Any]) -> None:
        """Note whether a channel loses by folded values that are too small for their dtype."""
        if not self.small or self.underflow:
            return
        again = {node: item for node, item in known.items() if node not in self.new} | self.small
        evaluate(self.new, again)
        lost = max(
            channel_error(again[new], known[new], 0.0) for new in self.edit.replacements.values()
        )
        dtype = constant(next(iter(self.small))).dtype
        if lost > _LOST_UNITS * torch.finfo(dtype).eps:
            self.underflow = f"a folded value underflows {dtype}: a channel loses {lost:.0%}"

    def _raise_gain(self, known: dict[Node, Any]) -> None:
        """Let the next values reach the bounds of what is not linear inside the edit."""
        for node in self.old:
            inside = [read for read in node.all_input_nodes if is_call(read) and read in self.old]
            if len(inside) == len(node.all_input_nodes) == 1 and _bends(node):
                seen, bound = largest(known[read] for read in inside), float(landmarks([node])[-1])
                if 0 < seen < 2 * bound:
                    self.gain = min(_GAIN, max(self.gain, self.gain * 2 * bound / seen))


def _underflowing(edit: Edit) -> dict[Node, Tensor]:
    """The folded constants, as they are after rounding, that hold values too small for it."""
    small = {node: underflowed(exact, constant(node).dtype) for node, exact in edit.exact.items()}
    return {node: widen(item) for node, item in small.items() if item is not None}


def _ranges(nodes: Collection[Node], inputs: Sequence[Any]) -> list[tuple[int, int] | None]:
    """The ranges of integers to try: all where every operator is elementwise, else few."""
    integers = [fake for fake in tensors_in(inputs) if not fake.is_floating_point()]
    if not integers:
        return [None]
    if any(fake.device.type != "cpu" for fake in integers):
        return [(0, 2), (1, 3)]  # an index out of range ends the process
    whole = all(_is_elementwise(node) for node in nodes if is_call(node))
    return [*([None] if whole else []), *_INTEGERS]


def _is_elementwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _bends(node: Node) -> bool:
    """Whether an operator is elementwise and not linear."""
    return is_call(node) and _is_elementwise(node) and not is_call(node, *ARITHMETIC, aten.neg)


def _shapes(item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_shapes(part) for part in item]
    return item.shape if isinstance(item, Tensor) else ()
