"""The proof of a whole program against the captured model, on numbers; it takes any callable."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from passfx.capture.dynamic import resample
from passfx.capture.program import Captured
from passfx.errors import VerificationError
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensors, value
from passfx.verify.error import absolute_error, relative_error

_SAME_SIZE_SAMPLES = 2


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

    def checked(self) -> "Parity":
        """The proof itself, if it holds.

        Raises:
            VerificationError: it does not; with the figures.
        """
        if self.passed:
            return self
        raise VerificationError(
            f"the result disagrees with the model: under {self.provider} its relative error is "
            f"{self.rel_error:.2e}, tolerated is {self.tolerance:.2e} (the original model's own "
            f"is {self.baseline_rel_error:.2e})"
        )


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
            reference = tensors(run_flat(captured.graph_module, inputs))
        except (RuntimeError, IndexError):
            if number < _SAME_SIZE_SAMPLES:
                raise
            continue  # sizes that the model itself does not take together
        original = tensors(run_flat(captured.graph_module, inputs, double=False))
        results = zip(outputs, reference, original, candidate(inputs), strict=True)
        for errors, expected, own, result in results:
            errors.baseline = max(errors.baseline, relative_error(own, expected))
            errors.relative = max(errors.relative, relative_error(result, expected))
            errors.absolute = max(errors.absolute, absolute_error(result, expected))
        samples += 1
    worst = max(
        outputs,
        key=lambda errors: (errors.relative > errors.tolerance(rtol), errors.relative),
        default=_OutputErrors(),
    )
    error, tolerance = worst.relative, worst.tolerance(rtol)
    largest = max((errors.absolute for errors in outputs), default=0.0)
    passed = error <= tolerance
    return Parity(provider, samples, largest, error, worst.baseline, tolerance, passed)


@dataclass
class _OutputErrors:
    """Maxima over the samples of one output."""

    absolute: float = 0.0
    relative: float = 0.0
    baseline: float = 0.0

    def tolerance(self, rtol: float) -> float:
        """Twice the baseline plus `rtol`; a model that overflows by itself excuses nothing."""
        return rtol + (2 * self.baseline if math.isfinite(self.baseline) else 0.0)


def draw_samples(captured: Captured, seed: int) -> Iterator[list[Any]]:
    """The example inputs, then inputs drawn from their values, at other dynamic sizes too.

    One of the other sizes is a multiple of whatever power of two the example's is a multiple of,
    because many models take no others.
    """
    yield captured.flat_inputs
    generator = torch.Generator().manual_seed(seed)
    for turn in range(3 if captured.program.range_constraints else 1):
        resized = partial(_resize, turn=turn, captured=captured)
        yield [
            resample(given, tuple(map(resized, value(node).shape)), generator)
            if isinstance(given, Tensor)
            else given
            for node, given in zip(captured.placeholders, captured.flat_inputs, strict=True)
        ]


def _resize(size: Any, turn: int, captured: Captured) -> int:
    """A dynamic size one step larger than the example's, or smaller where that is out of range."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    values = {}
    for symbol in expression.free_symbols:
        example = int(size.node.shape_env.backed_var_to_val[symbol])
        bounds = captured.program.range_constraints.get(symbol)
        step = (0, 1, min(example & -example, 64))[turn]
        sizes = example + step, example - step, example
        values[symbol] = next(
            found for found in sizes if bounds is None or bounds.lower <= found <= bounds.upper
        )
    return int(expression.subs(values))
