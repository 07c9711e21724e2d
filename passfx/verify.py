"""Proofs on numbers: a local certificate for each rewrite, and parity of whole programs.

This module knows no ONNX Runtime: parity takes any callable.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, ops
from torch.fx import Node

from passfx.capture import Captured
from passfx.graph.editor import Certificate, Edit
from passfx.graph.evaluate import evaluate, run_flat, widen
from passfx.graph.query import (
    CONVS,
    TRANSPOSED_CONVS,
    arguments,
    constant,
    hint,
    is_call,
    is_constant,
    tensor,
    value,
)

aten = ops.aten

CERTIFICATE_TOLERANCE = 1e-9
_SEED = 0
_SAME_SIZE_SAMPLES = 2

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


def relative_error(result: Any, reference: Any) -> float:
    """max |result − reference| / max |reference|; infinite where shapes or infinities differ.

    Of several results, as `split` has them, the largest error.
    """
    if isinstance(reference, list | tuple):
        if len(result) != len(reference):
            return math.inf
        return max(map(relative_error, result, reference), default=0.0)
    reference = torch.as_tensor(reference)
    result = torch.as_tensor(result, device=reference.device)
    if result.shape != reference.shape:
        return math.inf
    if not reference.numel():
        return 0.0
    if not reference.dtype.is_floating_point and not reference.is_complex():
        return float((result != reference).double().mean())
    result, reference = widen(result), widen(reference)
    worst = float((result - reference).abs().max())
    scale = float(reference.abs().max())
    if not (math.isfinite(worst) and math.isfinite(scale)):
        finite = reference.isfinite()
        if not torch.equal(finite, result.isfinite()) or not torch.equal(
            result[~finite].nan_to_num(), reference[~finite].nan_to_num()
        ):
            return math.inf
        if not finite.any():
            return 0.0
        worst = float((result - reference)[finite].abs().max())
        scale = float(reference[finite].abs().max())
    return worst / scale if scale else worst


@dataclass(frozen=True)
class Parity:
    """How far a program is from the captured model in float64, beside the model's own rounding.

    `max_abs_error` is the maximum over samples and outputs. A relative error is max |difference|
    over max |reference|, for integer outputs the share of elements that differ; those given, and
    the tolerance, are of the output with the largest one, first of all of those that fail.
    """

    provider: str
    samples: int
    max_abs_error: float
    rel_error: float
    baseline_rel_error: float
    tolerance: float
    passed: bool


def parity(
    captured: Captured,
    candidate: Callable[[list[Any]], Sequence[Any]],
    *,
    provider: str,
    rtol: float = 1e-6,
    seed: int = 0,
) -> Parity:
    """Compare a program with the captured model, which runs in float64 as the reference.

    Each output of the candidate may be at most twice as far from the reference as that of the
    captured model in its own dtypes is, plus `rtol`.

    Args:
        captured: the reference; its example inputs are the first sample, the further ones are
            drawn from their values, with other sizes of the dynamic dimensions.
        candidate: flat inputs → flat tensor outputs, in the order of `captured.output_names`.
        provider: what runs the candidate, for the report.
    """
    outputs = [_OutputErrors() for _ in captured.output_names]
    samples = 0
    for number, inputs in enumerate(draw_samples(captured, seed)):
        try:
            reference = _tensors(run_flat(captured.graph_module, inputs))
        except (RuntimeError, IndexError):
            if number < _SAME_SIZE_SAMPLES:
                raise
            continue  # sizes that the model itself does not take together
        original = _tensors(run_flat(captured.graph_module, inputs, double=False))
        results = zip(outputs, reference, original, candidate(inputs), strict=True)
        for errors, expected, own, result in results:
            errors.baseline = max(errors.baseline, relative_error(own, expected))
            errors.relative = max(errors.relative, relative_error(result, expected))
            errors.absolute = max(errors.absolute, _absolute_error(result, expected))
        samples += 1
    worst = max(
        outputs,
        key=lambda errors: (errors.relative > errors.tolerance(rtol), errors.relative),
        default=_OutputErrors(),
    )
    tolerance = worst.tolerance(rtol)
    return Parity(
        provider=provider,
        samples=samples,
        max_abs_error=max((errors.absolute for errors in outputs), default=0.0),
        rel_error=worst.relative,
        baseline_rel_error=worst.baseline,
        tolerance=tolerance,
        passed=worst.relative <= tolerance,
    )


@dataclass
class _OutputErrors:
    """Maxima over the samples of one output."""

    absolute: float = 0.0
    relative: float = 0.0
    baseline: float = 0.0

    def tolerance(self, rtol: float) -> float:
        """Twice the baseline plus `rtol`; a model that overflows by itself excuses nothing."""
        return rtol + (2 * self.baseline if math.isfinite(self.baseline) else 0.0)


def _tensors(results: Iterable[Any]) -> list[Tensor]:
    return [item for item in results if isinstance(item, Tensor)]


def _absolute_error(result: Tensor, reference: Tensor) -> float:
    if result.shape != reference.shape:
        return math.inf
    result, reference = (item.detach().cpu().to(_widest(item)) for item in (result, reference))
    same = (result == reference) | (result.isnan() & reference.isnan())
    difference = (result - reference).abs().masked_fill(same, 0.0).nan_to_num(math.inf)
    return float(difference.max()) if difference.numel() else 0.0


def _widest(item: Tensor) -> torch.dtype:
    return torch.complex128 if item.is_complex() else torch.float64


def draw_samples(captured: Captured, seed: int) -> Iterator[list[Any]]:
    """The example inputs, then inputs drawn from their values, at other dynamic sizes too.

    One of the other sizes is a multiple of whatever power of two the example's is a multiple of,
    because many models take no others.
    """
    yield captured.flat_inputs
    generator = torch.Generator().manual_seed(seed)
    for step in _STEPS if captured.program.range_constraints else _STEPS[:1]:
        yield [
            _resample(
                given, tuple(_resize(size, step, captured) for size in value(node).shape), generator
            )
            if isinstance(given, Tensor)
            else given
            for node, given in zip(captured.placeholders, captured.flat_inputs, strict=True)
        ]


_STEPS: tuple[Callable[[int], int], ...] = (
    lambda size: 0,
    lambda size: 1,
    lambda size: min(size & -size, 64),
)


def _resize(size: Any, step: Callable[[int], int], captured: Captured) -> int:
    """A dynamic size one step larger than the example's, or smaller where that is out of range."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    values = {}
    for symbol in expression.free_symbols:
        example = int(size.node.shape_env.backed_var_to_val[symbol])
        bounds = captured.program.range_constraints.get(symbol)
        larger, smaller = example + step(example), example - step(example)
        if bounds is None or larger <= bounds.upper:
            values[symbol] = larger
        else:
            values[symbol] = smaller if smaller >= bounds.lower else example
    return int(expression.subs(values))


def _resample(given: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor of `shape` with elements drawn from `given`, so that they stay in its domain."""
    flat = given.detach().cpu().reshape(-1)
    count = math.prod(shape)
    if given.dtype.is_floating_point and (not flat.numel() or bool((flat == flat[0]).all())):
        return torch.randn(shape, generator=generator).to(given)
    chosen = torch.randint(0, max(1, flat.numel()), (count,), generator=generator)
    return flat[chosen].reshape(shape).to(given.device)
