"""The local proof of a rewrite, on numbers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, ops
from torch.fx import Node

from passfx.graph.editor import Certificate, Edit
from passfx.graph.evaluate import evaluate, widen
from passfx.graph.ops import CONVS, TRANSPOSED_CONVS
from passfx.graph.query import arguments, constant, is_call, is_constant, value
from passfx.graph.shapes import hint, ints, known_tensor
from passfx.verify.error import channel_error, relative_error, underflowed

aten = ops.aten

CERTIFICATE_TOLERANCE = 1e-9
_LOST_UNITS = 4  # in the last place, which a channel may lose where a folded value is too small
_SEED = 0

_CONVS = (*CONVS, *TRANSPOSED_CONVS)
# Operators that mean the same at every spatial size, so that a region of them can be proven on
# small inputs. A pass whose rewrite is exact at the captured size only must use others.
_ANY_SIZE = (
    *(*_CONVS, aten.linear, aten.batch_norm, aten.relu, aten.hardtanh, aten.clamp),
    *(aten.add, aten.sub, aten.mul, aten.div),
)


def certify(edit: Edit) -> Certificate:
    """Run the removed nodes and the new ones in float64 on the same random inputs.

    New constants take part in full precision, so that the two agree to float64 rounding if the
    algebra is right; that each of them survives rounding to its own dtype is checked apart.
    """
    for node, exact in edit.exact.items():
        if _largest(constant(node)) == math.inf and _largest(exact) < math.inf:
            return Certificate(None, f"a folded value overflows {constant(node).dtype}")
    if not edit.replacements:
        return Certificate(None)
    nodes = [*edit.match.nodes, *edit.added]
    constants = {node: widen(exact) for node, exact in edit.exact.items()}
    reads = {read for node in nodes for read in node.all_input_nodes}
    reads.update(edit.replacements.values())
    evaluate(filter(is_constant, reads), constants)
    frontier = sorted(read for read in reads.difference(nodes) if not is_constant(read))
    error, generator = 0.0, torch.Generator().manual_seed(_SEED)
    for shapes in _shapes(edit, frontier, set(nodes)):
        drawn = zip(frontier, shapes, strict=True)
        values = {node: _draw(value(node), shape, generator) for node, shape in drawn} | constants
        try:
            evaluate(nodes, values)
        except RuntimeError as failure:
            return Certificate(None, f"the certificate cannot run: {failure}")
        for old, new in edit.replacements.items():
            error = max(error, relative_error(values[new], values[old]))
        if (underflow := _underflow(edit, values)) is not None:
            return Certificate(error, underflow)
    if not error <= CERTIFICATE_TOLERANCE:
        return Certificate(error, f"relative error {error:.1e} on random inputs")
    return Certificate(error)


def _underflow(edit: Edit, values: dict[Node, Any]) -> str | None:
    """Why folded values are too small for their dtype: a channel of the result loses by it."""
    dtypes = {node: constant(node).dtype for node in edit.exact}
    small = {node: underflowed(exact, dtypes[node]) for node, exact in edit.exact.items()}
    rounded = {node: widen(item) for node, item in small.items() if item is not None}
    if not rounded:
        return None
    kept = {node: item for node, item in values.items() if node not in edit.added}
    again = kept | {node: values[node] for node in edit.exact if node in values} | rounded
    evaluate(edit.added, again)
    lost = max(channel_error(again[new], values[new]) for new in edit.replacements.values())
    dtype = dtypes[next(iter(rounded))]
    if lost <= _LOST_UNITS * torch.finfo(dtype).eps:
        return None
    return f"a folded value underflows {dtype}: a channel loses {lost:.0%}"


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0


def _shapes(
    edit: Edit, frontier: Sequence[Node], inside: set[Node]
) -> Iterator[list[tuple[int, ...]]]:
    """The shapes to try: several small ones where any size serves, else the captured ones."""
    captured = [tuple(map(hint, getattr(value(node), "shape", ()))) for node in frontier]
    rank = _free_rank(edit, frontier, inside)
    if rank is None:
        yield captured
        return
    *batch, channels = captured[0][:-rank]
    reach = _needed(frontier[0], inside)
    for extents in ((0, 0, 0), (1, 3, 2), (4, 1, 3)):
        sizes = (reach + extent for extent in extents[:rank])
        yield [(*(min(size, 2) for size in batch), channels, *sizes)]


def _free_rank(edit: Edit, frontier: Sequence[Node], inside: set[Node]) -> int | None:
    """In how many spatial dimensions an edit may be proven at any size; None: at its own alone.

    The one place that decides it: the pass says that the rewrite is exact for every size, it has
    one input, and all of its operators mean the same at every size. Without a convolution (linear
    layers and elementwise operators) any axis may be the channels.
    """
    calls = [node for node in inside if not is_constant(node)]
    alike = all(is_call(node, *_ANY_SIZE) for node in calls)
    if not (edit.match.any_size and len(frontier) == 1 and alike):
        return None
    weights = (_weight(node) for node in calls if is_call(node, *_CONVS))
    return max((weight.ndim - 2 for weight in weights), default=None)


def _weight(conv: Node) -> Tensor:
    return known_tensor(arguments(conv)["weight"])


def _needed(source: Node, inside: set[Node]) -> int:
    """The smallest size of `source` from which every node inside has a result."""
    needed = dict.fromkeys([source, *inside], 1)
    for node in sorted(inside, reverse=True):
        size = needed[node]
        if is_call(node, *_CONVS):
            bound, weight = arguments(node), _weight(node)
            steps = ints(bound["dilation"], weight.ndim - 2)
            taps = zip(steps, weight.shape[2:], strict=True)
            reach = max(int(step) * (tap - 1) + 1 for step, tap in taps)  # dilation included
            size = max(ints(bound["stride"])) * (size - 1) + reach
        for read in node.all_input_nodes:
            needed[read] = max(needed.get(read, 1), size)
    return needed[source]


def _draw(fake: Any, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    if isinstance(fake, list | tuple):
        return [_draw(item, tuple(map(hint, item.shape)), generator) for item in fake]
    if not isinstance(fake, Tensor):
        return fake if isinstance(fake, int | float | bool) or fake is None else hint(fake)
    if fake.dtype.is_complex or fake.dtype.is_floating_point:
        dtype = torch.complex128 if fake.dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=dtype, generator=generator).to(fake.device)
    return torch.randint(0, 2, shape, generator=generator).to(fake.device, fake.dtype)
