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
from passfx.graph.query import arguments, constant, hint, is_call, is_constant, tensor, value

aten = ops.aten

CERTIFICATE_TOLERANCE = 1e-9
_SEED = 0
_SAME_SIZE_SAMPLES = 2

# Operators that mean the same at every spatial size, so that a region of them can be proven on
# small inputs. A pass whose rewrite is exact at the captured size only must use others.
_ANY_SIZE = (
    aten.conv1d,
    aten.conv2d,
    aten.conv3d,
    aten.conv_transpose1d,
    aten.conv_transpose2d,
    aten.conv_transpose3d,
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
_CONVS = _ANY_SIZE[:6]


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
    for shapes in _shapes(frontier, inside):
        yield {
            node: _draw(value(node), shape, generator)
            for node, shape in zip(frontier, shapes, strict=True)
        }


def _shapes(frontier: Sequence[Node], inside: set[Node]) -> Iterator[list[tuple[int, ...]]]:
    """The shapes to try: small ones where the operators allow it, else the captured ones."""
    captured = [tuple(map(hint, getattr(value(node), "shape", ()))) for node in frontier]
    calls = [node for node in inside if not is_constant(node)]
    if len(frontier) != 1 or not calls or not all(is_call(node, *_ANY_SIZE) for node in calls):
        yield captured
        return
    convs = [arguments(node) for node in calls if is_call(node, *_CONVS)]
    spatial = max((_spatial_dims(bound) for bound in convs), default=None)
    if spatial is None:  # linear layers and elementwise operators: channels at axis 1 or last
        batch, *rest = captured[0] or (1,)
        yield [(min(batch, 3), *rest)] if captured[0] else [()]
        return
    reach = max(_reach(bound) for bound in convs)
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


def _reach(bound: dict[str, Any]) -> int:
    """The largest extent of a convolution's kernel, dilation included."""
    weight = tensor(bound["weight"])
    assert weight is not None
    dilation = bound["dilation"]
    steps = dilation if isinstance(dilation, list | tuple) else [dilation]
    steps = list(steps) * (weight.ndim - 2) if len(steps) == 1 else steps
    return max(int(step) * (tap - 1) + 1 for step, tap in zip(steps, weight.shape[2:], strict=True))


def _draw(fake: Any, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    if isinstance(fake, list | tuple):
        return [_draw(item, tuple(map(hint, item.shape)), generator) for item in fake]
    if not isinstance(fake, Tensor):
        return fake if isinstance(fake, int | float | bool) or fake is None else hint(fake)
    if fake.dtype.is_complex:
        return torch.randn(shape, dtype=torch.complex128, generator=generator)
    if fake.dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64, generator=generator)
    return torch.randint(0, 2, shape, generator=generator).to(fake.dtype)


def relative_error(result: Any, reference: Any) -> float:
    """max |result − reference| / max |reference|; infinite where shapes or infinities differ."""
    result, reference = torch.as_tensor(result), torch.as_tensor(reference)
    if result.shape != reference.shape:
        return math.inf
    if not reference.numel():
        return 0.0
    if not reference.dtype.is_floating_point and not reference.is_complex():
        return float((result != reference).double().mean())
    result, reference = widen(result), widen(reference)
    difference = (result - reference).abs_()
    scale = float(reference.abs().max())
    worst = float(difference.max())
    if math.isfinite(worst) and math.isfinite(scale):
        return worst / scale if scale else worst
    special = ~reference.isfinite()
    if not torch.equal(special, ~result.isfinite()) or not torch.equal(
        result[special].nan_to_num(), reference[special].nan_to_num()
    ):
        return math.inf
    return relative_error(result[~special], reference[~special])


@dataclass(frozen=True)
class Parity:
    """How far a program is from the captured model in float64, beside the model's own rounding.

    Errors are maxima over samples and outputs; relative ones are max |difference| over
    max |reference| of one output, and for integer outputs the share of elements that differ.
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

    The candidate may be at most twice as far from the reference as the captured model in its own
    dtypes is, plus `rtol`.

    Args:
        captured: the reference; its example inputs are the first sample, the further ones are
            drawn from their values, with other sizes of the dynamic dimensions.
        candidate: flat inputs → flat tensor outputs, in the order of `captured.output_names`.
        provider: what runs the candidate, for the report.
    """
    absolute = relative = baseline = 0.0
    samples = 0
    for number, inputs in enumerate(draw_samples(captured, seed)):
        try:
            reference = _tensors(run_flat(captured.graph_module, inputs))
        except RuntimeError:
            if number < _SAME_SIZE_SAMPLES:
                raise
            continue  # sizes that the model itself does not take together
        original = _tensors(run_flat(captured.graph_module, inputs, double=False))
        for expected, own, result in zip(reference, original, candidate(inputs), strict=True):
            baseline = max(baseline, relative_error(own, expected))
            relative = max(relative, relative_error(result, expected))
            absolute = max(absolute, _absolute_error(result, expected))
        samples += 1
    tolerance = 2 * baseline + rtol
    return Parity(provider, samples, absolute, relative, baseline, tolerance, relative <= tolerance)


def _tensors(results: Iterable[Any]) -> list[Tensor]:
    return [item for item in results if isinstance(item, Tensor)]


def _absolute_error(result: Tensor, reference: Tensor) -> float:
    if result.shape != reference.shape or not reference.numel():
        return math.inf if result.shape != reference.shape else 0.0
    return float((widen(result).double() - widen(reference).double()).abs().nan_to_num(0.0).max())


def draw_samples(captured: Captured, seed: int) -> Iterator[list[Any]]:
    """The example inputs, then inputs drawn from their values, at other dynamic sizes too."""
    yield captured.flat_inputs
    generator = torch.Generator().manual_seed(seed)
    for grown in (0, 1, 3) if captured.program.range_constraints else (0,):
        yield [
            _resample(
                given, tuple(_grow(size, grown, captured) for size in value(node).shape), generator
            )
            if isinstance(given, Tensor)
            else given
            for node, given in zip(captured.placeholders, captured.flat_inputs, strict=True)
        ]


def _grow(size: Any, steps: int, captured: Captured) -> int:
    """A dynamic size some steps larger than the example's, within its declared range."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    values = {}
    for symbol in expression.free_symbols:
        example = int(size.node.shape_env.backed_var_to_val[symbol])
        bounds = captured.program.range_constraints.get(symbol)
        upper = (
            example + steps
            if bounds is None
            else min(example + steps, int(min(bounds.upper, 2**31)))
        )
        values[symbol] = upper
    return int(expression.subs(values))


def _resample(given: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor of `shape` with elements drawn from `given`, so that they stay in its domain."""
    flat = given.detach().cpu().reshape(-1)
    count = math.prod(shape)
    if given.dtype.is_floating_point and (not flat.numel() or bool((flat == flat[0]).all())):
        return torch.randn(shape, generator=generator).to(given.dtype)
    chosen = torch.randint(0, max(1, flat.numel()), (count,), generator=generator)
    return flat[chosen].reshape(shape)
