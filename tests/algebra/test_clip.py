"""The composition of two clips is what applying both to numbers gives."""

from itertools import product
from math import inf, nan

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passfx.algebra.clip import Clip

BOUNDS = (-inf, -2.0, -0.5, 0.0, 1.0, 3.0, inf)
NUMBERS = torch.tensor([-inf, *torch.arange(-4, 4.25, 0.25).tolist(), inf, nan]).double()
CLIPS = tuple(Clip(low, high) for low, high in product(BOUNDS, BOUNDS))


def clamp(x: Tensor, clip: Clip) -> Tensor:
    return torch.clamp(x, clip.low, clip.high)


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))


def test_then_is_both_clips_for_every_pair_of_bounds() -> None:
    mismatches = [
        (first, after)
        for first, after in product(CLIPS, CLIPS)
        if not same(clamp(NUMBERS, first.then(after)), clamp(clamp(NUMBERS, first), after))
    ]
    assert mismatches == []


def test_call_is_torch_clamp_of_one_number() -> None:
    for clip in CLIPS:
        assert same(
            torch.tensor([clip(x) for x in NUMBERS.tolist()]).double(), clamp(NUMBERS, clip)
        )


def test_nan_passes_through() -> None:
    assert all(clip(nan) != clip(nan) for clip in CLIPS)


bounds = st.floats(allow_nan=False, width=32)
clips = st.builds(Clip, bounds, bounds)


@given(clips, clips, bounds)
def test_then_applies_the_first_clip_first(first: Clip, after: Clip, x: float) -> None:
    assert first.then(after)(x) == after(first(x))


@given(clips, clips, clips)
def test_then_is_associative(a: Clip, b: Clip, c: Clip) -> None:
    assert a.then(b).then(c) == a.then(b.then(c))
