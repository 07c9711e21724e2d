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
from passfx.graph.query import arguments, constant, is_call, is_constant, tensor, value
from passfx.graph.shapes import hint
from passfx.verify.error import relative_error

aten = ops.aten

CERTIFICATE_TOLERANCE = 1e-9
_SEED = 0

_CONVS = (*CONVS, *TRANSPOSED_CONVS)
# Operators that mean the same at every spatial size, so that a region of them can be proven on
# small inputs. A pass whose rewrite is exact at the captured size only must use others.
_ANY_SIZE = (
    *_CONVS,
    aten.linear,
    aten.batch_norm,
    aten.relu,
    aten.hardtanh,
    aten.clamp,
    aten.add,
    aten.sub,
    aten.mul,
    aten.div,
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
    reads = [read for node in nodes for read in node.all_input_nodes]
    evaluate(filter(is_constant, [*reads, *edit.replacements.values()]), constants)
    error = 0.0
    for inputs in _draw_inputs(edit):
        values = {**inputs, **constants}
        try:
            evaluate(nodes, values)
        except RuntimeError as failure:
            return Certificate(None, f"the certificate cannot run: {failure}")
        for old, new in edit.replacements.items():
            error = max(error, relative_error(values[new], values[old]))
    if not error <= CERTIFICATE_TOLERANCE:
        return Certificate(error, f"relative error {error:.1e} on random inputs")
    return Certificate(error)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0


def _draw_inputs(edit: Edit) -> Iterator[dict[Node, Any]]:
    inside = {*edit.match.nodes, *edit.added}
    reads = [read for node in inside for read in node.all_input_nodes]
    reads += edit.replacements.values()
    frontier = sorted({read for read in reads if read not in inside and not is_constant(read)})
    generator = torch.Generator().manual_seed(_SEED)
    for shapes in _shapes(frontier, inside, edit.match.any_size):
        yield {
            node: _draw(value(node), shape, generator)
            for node, shape in zip(frontier, shapes, strict=True)
        }


def _shapes(
    frontier: Sequence[Node], inside: set[Node], any_size: bool
) -> Iterator[list[tuple[int, ...]]]:
    """The shapes to try: small ones where the operators allow it, else the captured ones."""
    captured = [tuple(map(hint, getattr(value(node), "shape", ()))) for node in frontier]
    calls = [node for node in inside if not is_constant(node)]
    if (
        not any_size
        or len(frontier) != 1
        or not calls
        or not all(is_call(node, *_ANY_SIZE) for node in calls)
    ):
        yield captured
        return
    convs = [arguments(node) for node in calls if is_call(node, *_CONVS)]
    spatial = max((_spatial_dims(bound) for bound in convs), default=None)
    if spatial is None:  # linear layers and elementwise operators: any axis may be the channels
        yield captured
        return
    reach = max(_needed(node, list(inside)) for node in frontier)
    for extents in ((0, 0, 0), (1, 3, 2), (4, 1, 3)):
        sizes = tuple(reach + extent for extent in extents[:spatial])
        yield [
            (
                *(min(size, 2) for size in captured[0][: -1 - spatial]),
                captured[0][-1 - spatial],
                *sizes,
            )
        ]


def _spatial_dims(bound: dict[str, Any]) -> int:
    weight = tensor(bound["weight"])
    assert weight is not None
    return weight.ndim - 2


def _needed(source: Node, inside: list[Node]) -> int:
    """The smallest size of `source` from which every node inside has a result."""
    needed = dict.fromkeys([source, *inside], 1)
    for node in sorted(inside, reverse=True):
        size = needed[node]
        if is_call(node, *_CONVS):
            bound = arguments(node)
            size = max(_ints(bound["stride"])) * (size - 1) + _reach(bound)
        for read in node.all_input_nodes:
            needed[read] = max(needed.get(read, 1), size)
    return needed[source]


def _reach(bound: dict[str, Any]) -> int:
    """The largest extent of a convolution's kernel, dilation included."""
    weight = tensor(bound["weight"])
    assert weight is not None
    steps = _ints(bound["dilation"])
    steps = steps * (weight.ndim - 2) if len(steps) == 1 else steps
    return max(int(step) * (tap - 1) + 1 for step, tap in zip(steps, weight.shape[2:], strict=True))


def _ints(given: Any) -> list[int]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _draw(fake: Any, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    if isinstance(fake, list | tuple):
        return [_draw(item, tuple(map(hint, item.shape)), generator) for item in fake]
    if not isinstance(fake, Tensor):
        return fake if isinstance(fake, int | float | bool) or fake is None else hint(fake)
    if fake.dtype.is_complex or fake.dtype.is_floating_point:
        dtype = torch.complex128 if fake.dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=dtype, generator=generator).to(fake.device)
    return torch.randint(0, 2, shape, generator=generator).to(fake.device, fake.dtype)
