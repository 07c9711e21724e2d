"""Races: who runs when, and what is computed from the times."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import geometric_mean

import pytest

from passfx.runtime.race import Run, Timing, race, speedup


def test_percentiles_are_of_all_blocks() -> None:
    timing = Timing(((1.0, 2.0, 3.0), (4.0, 5.0)))
    assert timing.runs == 5
    assert timing.median == 3.0
    assert timing.percentile(100) == 5.0
    assert timing.percentile(90) == pytest.approx(4.6)


def test_a_slow_turn_of_the_machine_weighs_on_both() -> None:
    """The second turn was ten times as slow for everyone; the ratio does not see it."""
    before = Timing(((2.0, 2.0), (20.0, 20.0), (2.0,)))
    after = Timing(((1.0,), (10.0, 10.0, 10.0, 10.0), (1.0,)))
    assert speedup(before, after) == 2.0
    assert speedup(after, before) == 0.5


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


class Log:
    """Contestants that write down when they open, run and close."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def contestant(self, name: str) -> object:
        @contextmanager
        def opening() -> Iterator[Run]:
            self.events.append(f"open {name}")
            yield lambda: self.events.append(name)
            self.events.append(f"close {name}")

        return opening


def test_alone_nobody_else_is_open() -> None:
    log = Log()
    timings = race({name: log.contestant(name) for name in "ab"}, 1e-9, blocks=2)
    runs = ["open a", *["a"] * 6, "close a", "open b", *["b"] * 6, "close b"]
    back = ["open b", *["b"] * 6, "close b", "open a", *["a"] * 6, "close a"]
    assert log.events == runs + back
    assert {name: timing.runs for name, timing in timings.items()} == {"a": 6, "b": 6}
    assert all(len(timing.blocks) == 2 for timing in timings.values())


def test_together_everyone_opens_once() -> None:
    log = Log()
    race({name: log.contestant(name) for name in "ab"}, 1e-9, blocks=3, alone=False)
    assert log.events.count("open a") == log.events.count("close a") == 1
    assert log.events[-2:] == ["close b", "close a"]


def test_the_time_is_shared() -> None:
    counts = {"a": 0, "b": 0}

    def count(name: str) -> Run:
        def run() -> None:
            counts[name] += 1

        return run

    names = {name: (lambda name=name: nullcontext(count(name))) for name in counts}
    timings = race(names, 0.04, blocks=2)
    assert all(timing.runs > 100 for timing in timings.values())
    assert counts == {name: timing.runs + 6 for name, timing in timings.items()}
