"""Random inputs for a file: their sizes, and what is asked for where a size is not known."""

import pytest
import torch

from passfx.errors import SourceError
from passfx.runtime.inputs import draw_inputs
from passfx.runtime.session import Port

FIXED = Port("x", torch.float32, (2, 3, 8, 8))
BATCH = Port("x", torch.float32, ("batch", 3, 8, 8))
SIZES = Port("x", torch.float32, ("batch", 3, "height", None))
IDS = Port("ids", torch.int64, ("batch", 5))


def test_a_fixed_file_gets_its_own_batch() -> None:
    drawn = draw_inputs([FIXED])
    assert list(drawn) == [2]
    assert drawn[2][0].shape == (2, 3, 8, 8)


def test_each_batch_is_drawn() -> None:
    drawn = draw_inputs([BATCH, IDS], [1, 7])
    assert [tuple(item.shape) for item in drawn[7]] == [(7, 3, 8, 8), (7, 5)]
    assert drawn[7][1].dtype == torch.int64 and set(drawn[7][1].flatten().tolist()) <= {0, 1}
    assert list(draw_inputs([BATCH])) == [1]


def test_a_seed_draws_the_same() -> None:
    first, again, other = (draw_inputs([BATCH], seed=seed)[1][0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_shape_says_what_varies() -> None:
    assert draw_inputs([SIZES], [4], ["1x3x9x7"])[4][0].shape == (4, 3, 9, 7)
    drawn = draw_inputs([IDS, SIZES], [2], ["x:1x3x9x7"])
    assert [tuple(item.shape) for item in drawn[2]] == [(2, 5), (2, 3, 9, 7)]


def test_a_scalar_has_no_batch() -> None:
    assert draw_inputs([Port("scale", torch.float32, ()), BATCH], [3])[3][0].shape == ()


@pytest.mark.parametrize(
    ("port", "batches", "shapes", "said"),
    [
        (FIXED, [1], [], "its batch size is 2, not 1; convert with --dynamic-batch"),
        (SIZES, [1], [], "say how large axis 2 is, with --input-shape x:"),
        (SIZES, [1], ["1x3x9"], "which has not 3 axes"),
        (BATCH, [1], ["1x4x8x8"], "axis 1 cannot be 4"),
        (BATCH, [1], ["y:1x3x8x8"], "there is no input for the shape y; the inputs are x is"),
        (BATCH, [1], ["1x3x8x8", "1x3x8x8"], "there is no input for the shape 1x3x8x8"),
    ],
)
def test_what_does_not_fit_is_refused(
    port: Port, batches: list[int], shapes: list[str], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        draw_inputs([port], batches, shapes)
