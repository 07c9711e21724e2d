"""Measure ways to run one model against each other, in turns, in one run."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

Run = Callable[[], object]
Open = Callable[[], AbstractContextManager[Run]]

BLOCKS = 4
_WARM_UP = 3
_MIN_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """The seconds of single runs, block by block.

    A block is an uninterrupted series of runs; blocks of the contestants take turns.
    """

    blocks: tuple[tuple[float, ...], ...]

    @property
    def runs(self) -> int:
        """How many runs were counted."""
        return sum(map(len, self.blocks))

    @property
    def median(self) -> float:
        """The median of all runs."""
        return self.percentile(50)

    def percentile(self, q: float) -> float:
        """The time that `q` per cent of the runs did not exceed, interpolated."""
        return float(np.percentile([item for block in self.blocks for item in block], q))


def speedup(before: Timing, after: Timing) -> float:
    """How many times as fast `after` is: the median over blocks of the ratio of block medians.

    Blocks of the same turn were measured one after the other, so that a slow minute of a shared
    machine weighs on both.
    """
    pairs = zip(before.blocks, after.blocks, strict=True)
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)


def race(
    contestants: Mapping[str, Open], seconds: float, *, blocks: int = BLOCKS, alone: bool = True
) -> dict[str, Timing]:
    """Time the contestants in turns.

    Args:
        contestants: what opens each of them; what is opened runs once a call and returns when
            its results are there.
        seconds: for all of them together, warming up not counted; each runs three times a block
            even where that takes longer.
        blocks: turns; every second turn goes backwards.
        alone: close each contestant before the next one opens, so that its idle threads do not
            take the cores from the others; otherwise all stay open, which is for the GPU.
    """
    share = seconds / (blocks * max(1, len(contestants)))
    timings: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
    with ExitStack() as stack:
        opened: dict[str, Run] = {}
        for turn in range(blocks):
            for name in list(contestants)[:: -1 if turn % 2 else 1]:
                is_new = name not in opened
                if is_new:
                    opened[name] = stack.enter_context(contestants[name]())
                timings[name].append(_block(opened[name], share, _WARM_UP if is_new else 1))
                if alone:
                    stack.close()
                    opened.clear()
    return {name: Timing(tuple(found)) for name, found in timings.items()}


def _block(run: Run, seconds: float, warm_up: int) -> tuple[float, ...]:
    for _ in range(warm_up):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _MIN_RUNS or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return tuple(times)
