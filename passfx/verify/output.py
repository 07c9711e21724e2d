"""One output of two programs: how far apart they are, as a whole and channel by channel."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from passfx.verify.error import (
    absolute_error,
    by_channel,
    channel_axes,
    distance,
    magnitude,
    relative_error,
)
from passfx.verify.finite import count_nonfinite

_SCATTER = 16  # how far apart two maxima of the same noise over few elements may be
_APPROXIMATION = 64  # times PyTorch's own error: what a runtime's own way of computing may add


class Figures(NamedTuple):
    """Relative errors: of a program and of the original model, and what is tolerated.

    Attributes:
        channel: whose figures they are, "channel 3 of axis 1"; None: the whole output's.
    """

    error: float
    baseline: float
    tolerance: float
    channel: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the program is near enough."""
        return self.error <= self.tolerance


@dataclass
class Output:
    """Maxima over the samples of one output.

    Attributes:
        dtype: in which a program computes it.
        baseline: the relative error of the original model.
        rounding, approximation: what of it counts, of PyTorch's and of a runtime's.
        change: the relative distance of the reference from sample to sample; None before there are
            two of one shape.
    """

    name: str
    dtype: torch.dtype
    absolute: float = 0.0
    relative: float = 0.0
    baseline: float = 0.0
    rounding: float = 0.0
    approximation: float = 0.0
    nonfinite: int = 0
    change: float | None = None
    _strips: dict[tuple[int, int], "_Strip"] = field(default_factory=dict)

    def add_result(self, sample: int, result: Tensor, reference: Tensor) -> None:
        """What the program gives."""
        self.relative = max(self.relative, relative_error(result, reference))
        self.absolute = max(self.absolute, absolute_error(result, reference))
        self.nonfinite += count_nonfinite(reference)
        is_number = reference.is_floating_point() or reference.is_complex()
        if not is_number or result.shape != reference.shape or not reference.numel():
            return
        error, size = distance(result, reference), magnitude(reference)
        for axis in channel_axes(reference.ndim):
            scale = by_channel(size, axis)
            # A channel that is zero has no norm of its own.
            scale = torch.where(scale > 0, scale, scale.max())
            strip = _Strip(axis, scale, by_channel(error, axis), torch.zeros_like(scale))
            self._strips[sample, axis] = strip

    def add_change(self, reference: Tensor, other: Tensor) -> None:
        """What the model gives for two different inputs."""
        if reference.numel() and reference.shape == other.shape:
            self.change = max(self.change or 0.0, relative_error(reference, other))

    def is_constant(self, rtol: float) -> bool:
        """Whether it changes with the input by no more than an error may."""
        return self.change is not None and self.change <= self.figures(rtol).tolerance

    def add_baseline(
        self, sample: int, result: Tensor, reference: Tensor, whole: bool = True
    ) -> None:
        """What the original model gives: as a whole and by channel, or by channel alone.

        That it overflows by itself excuses nothing.
        """
        if whole:
            error = relative_error(result, reference)
            self.baseline = max(self.baseline, error)
            self.rounding = max(self.rounding, error if math.isfinite(error) else 0.0)
        self._add_noise(sample, result, reference, math.inf)

    def add_runtime(self, sample: int, result: Tensor, reference: Tensor) -> None:
        """What the original model gives under the program's runtime.

        A runtime may approximate: its error counts up to 64 times PyTorch's, or the last place of
        the dtype if that is more. What is beyond is a fault of the runtime or of the exporter.
        """
        error = relative_error(result, reference)
        self.baseline = max(self.baseline, error)
        if math.isfinite(error):
            limit = _APPROXIMATION * max(self.rounding, _last_place(self.dtype))
            self.approximation = max(self.approximation, min(error, limit))
        self._add_noise(sample, result, reference, _APPROXIMATION)

    def _add_noise(self, sample: int, result: Tensor, reference: Tensor, factor: float) -> None:
        strips = [strip for (number, _), strip in self._strips.items() if number == sample]
        if strips:
            error = distance(result, reference)
            for strip in strips:
                strip.add_noise(error, factor, _last_place(self.dtype))

    def figures(self, rtol: float, sample: int | None = None) -> Figures:
        """Those of the whole output, or of the worst channel where only a channel fails.

        Args:
            rtol: what is tolerated besides the error of the original.
            sample: whose channels count; by default those of all samples.
        """
        tolerance = rtol + 2 * max(self.rounding, self.approximation)
        whole = Figures(self.relative, self.baseline, tolerance)
        strips = [x for (number, _), x in self._strips.items() if sample in (None, number)]
        failed = [worst for strip in strips if not (worst := strip.worst(rtol, self.dtype)).passed]
        if not whole.passed or not failed:
            return whole
        return max(failed, key=lambda worst: worst.error - worst.tolerance)


@dataclass
class _Strip:
    """The channels of one output along one axis, in one sample: maxima over each channel."""

    axis: int
    scale: Tensor
    error: Tensor
    noise: Tensor

    def add_noise(self, error: Tensor, factor: float, last_place: float) -> None:
        """Let the original model's error count, up to a factor times what has counted."""
        noise = by_channel(error.nan_to_num(0.0, 0.0), self.axis)
        if math.isfinite(factor):
            limit = factor * torch.maximum(self.noise, last_place * self.scale)
            noise = torch.minimum(noise, limit)
        self.noise = torch.maximum(self.noise, noise)

    def worst(self, rtol: float, dtype: torch.dtype) -> Figures:
        """The figures of the channel that is farthest beyond its tolerance."""
        limits = torch.finfo(dtype)
        scale = self.scale.clamp(min=torch.finfo(torch.float64).tiny)
        least = limits.smallest_normal * limits.eps  # no result of this dtype is finer
        error, tolerance = self.error / scale, (_SCATTER * self.noise + least) / scale + rtol
        index = int((error - tolerance).argmax())
        channel = f"channel {index} of axis {self.axis}"
        return Figures(
            float(error[index]),
            float(self.noise[index] / scale[index]),
            float(tolerance[index]),
            channel,
        )


def _last_place(dtype: torch.dtype) -> float:
    """The relative error of rounding once to a dtype."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
