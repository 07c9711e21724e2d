"""The proof of a whole program against the captured model, on numbers; it takes any callable."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from passfx.capture.bounds import Bounds, Point
from passfx.capture.program import Captured
from passfx.capture.rules import SizeRule
from passfx.errors import VerificationError
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensors, value
from passfx.verify.finite import check_results, check_weights
from passfx.verify.noise import computed_in, rounded_results
from passfx.verify.output import Output

_SAME_SIZE_SAMPLES = 2
_DRAWS = 16  # of the model's own noise, at most
_HOPELESS = 100  # times the tolerance: what further draws do not excuse

Program = Callable[[list[Any]], Sequence[Any]]
_NEAR = 65  # sizes beyond the example's, among which one is looked for
_FEWEST = 2**16  # elements of the inputs that are never too many
_NOT_OURS = ": torch's exporter or the runtime computes another function"


@dataclass(frozen=True)
class Parity:
    """How far a program is from the captured model in float64, beside the model's own rounding.

    `max_abs_error` is the maximum over samples and outputs. A relative error is max |difference|
    over max |reference|, for integer outputs the share of elements that differ; those given, and
    the tolerance, are of the output with the largest one, first of all of those that fail. Where
    only a channel fails, they are that channel's alone.

    Attributes:
        output: the name of the output whose figures these are.
        channel: of that output, where only it fails: "channel 3 of axis 1".
        baseline: whose error the baseline is: "PyTorch", or "the model exported without rewrites".
        nonfinite: how many elements of the model's own results are NaN or infinite; a program that
            passed has the same in their places.
        unchanged: outputs that differ between samples by no more than is tolerated as an error: a
            constant would have passed too.
    """

    provider: str
    samples: int
    max_abs_error: float
    rel_error: float
    baseline_rel_error: float
    tolerance: float
    passed: bool
    output: str = ""
    channel: str | None = None
    baseline: str = "PyTorch"
    nonfinite: int = 0
    unchanged: tuple[str, ...] = ()

    @property
    def doubt(self) -> str | None:
        """A sentence about outputs of which nothing is proven."""
        if not self.unchanged:
            return None
        return (
            "the result is the same for all samples, to within the tolerance, so that parity "
            f"proves nothing of {', '.join(self.unchanged)}"
        )

    def checked(self) -> "Parity":
        """The proof itself, if it holds.

        Raises:
            VerificationError: it does not; with the figures.
        """
        if self.passed:
            return self
        place = f"{self.channel} of {self.output}" if self.channel else self.output
        told = (
            f"the relative error of {place} is {self.rel_error:.2e}, tolerated is "
            f"{self.tolerance:.2e} ({self.baseline} itself has {self.baseline_rel_error:.2e}"
            f"{_NOT_OURS if self.baseline_rel_error > self.tolerance else ''}); "
            "a larger --rtol (rtol) tolerates more"
        )
        if math.isinf(self.rel_error):
            told = f"{place} has other sizes, or is NaN or infinite where the model's is not"
        raise VerificationError(
            f"the result disagrees with the model: under {self.provider} {told}"
        )


def parity(
    captured: Captured,
    candidate: Program,
    *,
    provider: str,
    rtol: float = 1e-6,
    seed: int = 0,
    half: torch.dtype | None = None,
    unrewritten: Callable[[], Program | None] = lambda: None,
    allow_nonfinite: bool = False,
) -> Parity:
    """Compare a program with the captured model, which runs in float64 as the reference.

    Each output of the candidate may be at most twice as far from the reference as that of the
    captured model in its own dtypes is, plus `rtol`, in max |difference| / max |reference|.

    That says nothing of a channel that is far smaller than the others, so each channel (an index
    of axis 1 or of the last axis) is compared by its own norm as well, in each sample:

        max |difference| ≤ 16 · noise + rtol · max |reference|

    where noise is max |difference| of the captured model over the same channel. So a channel that
    is made by cancellation has a large noise of its own, which excuses no other; a sign that is
    flipped is an error of 2 in whatever channel. The bound is wide because there may be few errors
    in a channel, all of them small by chance.

    Where a bound does not hold, more runs count as the captured model's own: of the same model
    without rewrites under the same runtime, which may approximate a function in its own way but
    not compute another (output.py says how far), and up to 16 of the captured model with operators
    that round at random (noise.py). In half precision the latter excuse channels alone, because
    `rtol` is what half precision may cost as a whole.

    Args:
        captured: the reference; its example inputs are the first sample, the further ones are
            drawn from their values, with other sizes of the dynamic dimensions.
        candidate: flat inputs → flat tensor outputs, in the order of `captured.output_names`.
        provider: what runs the candidate, for the report.
        half: the dtype in which the candidate computes what is float32 in the model.
        unrewritten: makes the captured model a program of the candidate's runtime, or None; called
            only where PyTorch's errors do not excuse the candidate's.
        allow_nonfinite: accept weights that are not finite, and results that prove nothing.

    Raises:
        VerificationError: the model's weights, or its results on the example inputs, are not finite
            (finite.py), and that was not allowed.
    """
    if not allow_nonfinite:
        check_weights(captured)
    trial = _Trial(captured, rtol, half, torch.Generator().manual_seed(seed))
    for number, inputs in enumerate(draw_samples(captured, seed)):
        try:
            reference = tensors(run_flat(captured.graph_module, inputs))
        except (RuntimeError, IndexError):
            if number < _SAME_SIZE_SAMPLES:
                raise
            continue  # sizes that the model itself does not take together
        if not number and not allow_nonfinite:
            check_results(dict(zip(captured.output_names, reference, strict=True)))
        original = tensors(run_flat(captured.graph_module, inputs, double=False))
        trial.add_sample(inputs, reference, candidate(inputs), original)
    trial.add_noise(of_channels=True)
    baseline = Parity.baseline
    if not trial.worst.figures(rtol).passed and (program := unrewritten()) is not None:
        baseline = "the model exported without rewrites"
        trial.add_runtime(program)
    if half is None:
        trial.add_noise()
    worst, outputs = trial.worst, trial.outputs
    error, own, tolerance, channel = figures = worst.figures(rtol)
    largest = max((output.absolute for output in outputs), default=0.0)
    nonfinite = sum(output.nonfinite for output in outputs)
    return Parity(
        *(provider, len(trial.samples), largest, error, own, tolerance, figures.passed),
        *(worst.name, channel, baseline, nonfinite),
        tuple(output.name for output in outputs if output.is_constant(rtol)),
    )


class _Trial:
    """The outputs of a program against those of the captured model, sample after sample."""

    def __init__(
        self,
        captured: Captured,
        rtol: float,
        half: torch.dtype | None,
        generator: torch.Generator,
    ) -> None:
        fakes = tensors(map(value, captured.results))
        names = zip(captured.output_names, fakes, strict=True)
        self.outputs = [Output(name, computed_in(fake.dtype, half)) for name, fake in names]
        self.samples: list[tuple[list[Any], list[Tensor]]] = []
        self._graph_module = captured.graph_module
        self._rtol = rtol
        self._half = half
        self._generator = generator

    @property
    def worst(self) -> Output:
        """The output with the largest error, first of all of those that fail."""

        def badness(output: Output) -> tuple[bool, float]:
            figures = output.figures(self._rtol)
            return not figures.passed, figures.error

        return max(self.outputs, key=badness, default=Output("", torch.float32))

    def add_sample(
        self,
        inputs: list[Any],
        reference: list[Tensor],
        results: Sequence[Tensor],
        original: Sequence[Tensor],
    ) -> None:
        number = len(self.samples)
        if number and not all(map(_is_same, inputs, self.samples[0][0])):
            for output, *pair in zip(self.outputs, reference, self.samples[0][1], strict=True):
                output.add_change(*pair)
        self.samples.append((inputs, reference))
        for output, result, expected in zip(self.outputs, results, reference, strict=True):
            output.add_result(number, result, expected)
        self._add_own(number, original, reference)

    def add_runtime(self, program: Program) -> None:
        """Let the errors of the unrewritten model count, as far as they are the runtime's."""
        for number, (inputs, reference) in enumerate(self.samples):
            results = program(inputs)
            for output, result, expected in zip(self.outputs, results, reference, strict=True):
                output.add_runtime(number, result, expected)

    def add_noise(self, of_channels: bool = False) -> None:
        """Let the captured model round at random while that may excuse what disagrees.

        Args:
            of_channels: it excuses channels alone, of outputs that agree as a whole.
        """
        for number, (inputs, reference) in enumerate(self.samples):
            for draw in range(_DRAWS):
                found = [output.figures(self._rtol, number) for output in self.outputs]
                failed = [figures for figures in found if not figures.passed]
                if not failed or (of_channels and not all(item.channel for item in failed)):
                    break
                if draw >= 2 and any(item.error > _HOPELESS * item.tolerance for item in failed):
                    return
                noisy = rounded_results(self._graph_module, inputs, self._generator, self._half)
                self._add_own(number, noisy, reference, not of_channels)

    def _add_own(
        self,
        number: int,
        results: Sequence[Tensor],
        reference: list[Tensor],
        whole: bool = True,
    ) -> None:
        for output, result, expected in zip(self.outputs, results, reference, strict=True):
            output.add_baseline(number, result, expected, whole)


def _is_same(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y)


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
