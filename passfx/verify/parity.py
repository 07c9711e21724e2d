"""The proof of a whole program against the captured model, on numbers; it takes any callable."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from passfx.capture.bounds import Bounds, Point
from passfx.capture.program import Captured
from passfx.capture.rules import SizeRule
from passfx.errors import VerificationError
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensors
from passfx.verify.error import absolute_error, relative_error

_SAME_SIZE_SAMPLES = 2
_NEAR = 65  # sizes beyond the example's, among which one is looked for
_FEWEST = 2**16  # elements of the inputs that are never too many


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


def draw_samples(captured: Captured, seed: int, *, ends: bool = True) -> Iterator[list[Any]]:
    """The example inputs, then inputs drawn from their values, at other dynamic sizes too.

    All obey the rules of the sizes. One of the other sizes is a multiple of whatever power of two
    the example's is a multiple of, because many models take no others; two are the ends of the
    ranges, a far upper one nearer to the example: the model itself may not take them together, and
    without `ends` they are left out.
    """
    yield captured.flat_inputs
    generator = torch.Generator().manual_seed(seed)
    bounds = Bounds(captured.graph_module, captured.flat_inputs)
    points = [bounds.example]
    if bounds.places:
        points += [
            _resize(bounds, captured.rules, wanted) for wanted in _WANTED[: None if ends else 2]
        ]
    for point in dict.fromkeys(points):
        yield bounds.inputs(point, generator)


def _resize(bounds: Bounds, rules: Sequence[SizeRule], wanted: "_Wanted") -> Point:
    """Sizes of all places, where each symbol has the first wanted value that the rules allow."""
    values = [symbol.read(bounds.example) for symbol in bounds.symbols.values()]
    room = max(_FEWEST, 2 * bounds.elements(bounds.example))

    def allowed(number: int, value: int) -> bool:
        point = bounds.point([*values[:number], value, *values[number + 1 :]])
        sizes = dict(zip(bounds.places, point, strict=True))
        return all(rule.holds(sizes.__getitem__) for rule in rules)

    def fits(number: int, value: int) -> bool:
        point = bounds.point([*values[:number], value, *values[number + 1 :]])
        return bounds.elements(point) <= max(room, bounds.elements(bounds.example))

    for number, example in enumerate(values):
        options = wanted(example, partial(allowed, number))
        found = (size for size in options if allowed(number, size) and fits(number, size))
        values[number] = next(found, example)
    return bounds.point(values)


def _next(example: int, allowed: "_Allowed") -> Iterable[int]:
    return chain(range(example + 1, example + _NEAR), range(example - 1, 0, -1))


def _far(example: int, allowed: "_Allowed") -> Iterable[int]:
    step = min(example & -example, 64)
    return [size for size in (example + step, example - step) if size]


def _smallest(example: int, allowed: "_Allowed") -> Iterable[int]:
    return range(1, example)


def _largest(example: int, allowed: "_Allowed") -> Iterable[int]:
    """The end of a range that is not far away, else twice the example."""
    end = max(4 * example, _NEAR)
    is_endless = any(allowed(size) for size in range(end + 1, end + _NEAR))
    return range(2 * example if is_endless else end, example, -1)


_Allowed = Callable[[int], bool]
_Wanted = Callable[[int, _Allowed], Iterable[int]]
_WANTED: tuple[_Wanted, ...] = (_next, _far, _smallest, _largest)
