"""The values that a rewrite is proven on: random ones, and those where operators change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from passfx.graph.ops import TRANSPOSED_CONVS
from passfx.graph.query import arguments, is_call, tensor
from passfx.graph.shapes import ints
from passfx.verify.draws import Sizes

_EDGE = 8.0  # what floating values reach at least, on both sides
_REACH = 48  # a dilated chain beyond it is proven without its widest surroundings
_STRIDE = 8
_FAR = 1e4  # beyond it, a number stands for none


@dataclass(frozen=True)
class Values:
    """How inputs are drawn.

    Attributes:
        landmarks: the numbers that some floating values are, or lie 1 or less beside.
        gain: what the others are multiplied by.
        integers: the range of integers; None for that of their dtype.
    """

    generator: torch.Generator
    landmarks: Tensor
    gain: float = 1.0
    integers: tuple[int, int] | None = None

    def draw(self, fake: Any, sizes: Sizes) -> Any:
        """A value like a captured one: in double precision, of the sizes of a draw."""
        if isinstance(fake, list | tuple):
            return [self.draw(item, sizes) for item in fake]
        if not isinstance(fake, Tensor):
            is_number = isinstance(fake, int | float | bool) or fake is None
            return fake if is_number else sizes.number(fake)
        shape = sizes.shape(fake)
        if fake.dtype.is_complex:
            drawn = torch.randn(shape, dtype=torch.complex128, generator=self.generator)
            return (drawn * self.gain).to(fake.device)
        if fake.dtype.is_floating_point:
            return self._floats(shape).to(fake.device)
        return self._integers(shape, fake.dtype).to(fake.device)

    def _floats(self, shape: Sequence[int]) -> Tensor:
        """Normal values; every eighth, and at least one of three, at or beside a landmark."""
        drawn = torch.randn(shape, dtype=torch.float64, generator=self.generator) * self.gain
        flat, known = drawn.view(-1), len(self.landmarks)
        count = max(flat.numel() // 8, min(flat.numel() // 3, known))
        places = torch.randperm(flat.numel(), generator=self.generator)[:count]
        numbers = torch.arange(count) + self._below(3 * known)
        share = torch.rand(count, dtype=torch.float64, generator=self.generator)
        flat[places] = self.landmarks[numbers % known] + (numbers // known % 3 - 1) * share
        return drawn

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))

    def _integers(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Integers of a range; of that of the dtype, half are small and some are its ends."""
        if dtype == torch.bool:
            return torch.randint(0, 2, shape, generator=self.generator).to(dtype)
        if self.integers is not None:
            return torch.randint(*self.integers, shape, generator=self.generator).to(dtype)
        limits = torch.iinfo(dtype)
        low, high = max(limits.min, -(2**62)), min(limits.max, 2**62)
        wide = torch.randint(low, high, shape, generator=self.generator)
        small = torch.randint(max(low, -9), 10, shape, generator=self.generator)
        kind = torch.randint(0, 8, shape, generator=self.generator)
        ends = torch.where(kind == 0, limits.min, limits.max)
        return torch.where(kind > 3, small, torch.where(kind > 1, wide, ends)).to(dtype)


def landmarks(nodes: Iterable[Node]) -> Tensor:
    """0, what values reach at least, and every number among the arguments of some operators."""
    found = {0.0, -_EDGE, _EDGE}

    def add(item: Any) -> Any:
        is_number = isinstance(item, int | float) and not isinstance(item, bool)
        if is_number and abs(item) <= _FAR:
            found.add(float(item))
        return item

    for node in filter(is_call, nodes):
        map_aggregate((node.args, node.kwargs), add)
    return torch.tensor(sorted(found), dtype=torch.float64)


def reach_of(nodes: Iterable[Node]) -> tuple[int, int]:
    """What windows, one after the other, read: how far, and how many positions apart."""
    reach, stride = 1, 1
    for node in filter(is_call, nodes):
        bound = arguments(node)
        weight = tensor(bound.get("weight"))
        if "dilation" in bound and weight is not None:
            kernel: Sequence[int] = weight.shape[2:]
        else:
            kernel = ints(bound.get("kernel_size") or 1)
        steps = zip(kernel, ints(bound.get("dilation") or 1, len(kernel)), strict=False)
        reach += stride * max((int(step) * (int(tap) - 1) for tap, step in steps), default=0)
        if not is_call(node, *TRANSPOSED_CONVS):
            apart = bound.get("stride") or bound.get("kernel_size") or bound.get("downscale_factor")
            stride = min(stride * max(ints(apart or 1)), _STRIDE)
    return min(reach, _REACH), stride
