"""Axes: taps are aligned by their offsets, and every refusal names its reason."""

import pytest

from passfx.algebra.geometry import Axis, Geometry

PLAIN = Axis(3, 1, 1, 1)
LEAK = "the bias of the operator before would leak over its zero padding"
ZEROS = "its padding is zeros where the operator before, past the border, has values"


def conv(*axes: Axis, biased: bool = False) -> Geometry:
    return Geometry(2, 2, axes, 1, biased)


def test_an_axis_knows_its_offsets_and_sizes() -> None:
    axis = Axis(taps=3, stride=2, low=1, high=0, dilation=2)
    assert (axis.first, axis.last, axis.step, axis.excess) == (-1, 3, 2, -4)
    assert [axis.output_size(size) for size in (4, 5, 6)] == [1, 1, 2]
    assert Axis(dilation=5).step == 0


def test_composition_adds_offsets() -> None:
    assert PLAIN.then(PLAIN) == Axis(5, 1, 2, 2)
    assert Axis(3, 2, 1, 1).then(PLAIN) == Axis(7, 2, 3, 3)
    assert Axis(2, 2, dilation=2).then(Axis(2, dilation=2)) == Axis(4, 2, dilation=2)
    assert Axis(1, 2).then(Axis(3, 1, 1, 1)) == Axis(3, 2, 2, 2, 2)
    assert Axis(low=1, high=2).then(Axis(2, 2)) == Axis(2, 2, 1, 2)


def test_a_sum_holds_the_taps_of_both() -> None:
    assert PLAIN.plus(Axis()) == PLAIN
    assert Axis().plus(Axis()) == Axis()
    assert Axis(3, low=2, high=2, dilation=2).plus(PLAIN) == Axis(5, low=2, high=2)
    assert Axis(2, low=3, high=0, dilation=3).plus(Axis()) == Axis(2, low=3, high=0, dilation=3)


def test_positions_are_strided_by_the_dilation() -> None:
    wide = Axis(5, low=2, high=2)
    assert wide.position(PLAIN) == slice(1, 4, 1)
    assert wide.position(Axis(3, low=2, high=2, dilation=2)) == slice(0, 5, 2)


@pytest.mark.parametrize("size", [None, 5, 6])
def test_a_bias_leaks_over_zero_padding(size: int | None) -> None:
    assert conv(Axis(), biased=True).then_failure(conv(PLAIN), [size]) == LEAK
    assert conv(Axis()).then_failure(conv(PLAIN), [size]) is None


@pytest.mark.parametrize("size", [None, 5, 6])
def test_padding_between_two_kernels_hides_values(size: int | None) -> None:
    assert conv(PLAIN).then_failure(conv(PLAIN), [size]) == ZEROS
    assert conv(PLAIN, biased=True).then_failure(conv(PLAIN), [size]) == ZEROS


@pytest.mark.parametrize("size", [None, 5, 6])
def test_a_row_and_a_column_compose_without_a_bias(size: int | None) -> None:
    row, column = (Axis(), PLAIN), (PLAIN, Axis())
    assert conv(*row).then_failure(conv(*column), [size, size]) is None
    assert conv(*row, biased=True).then_failure(conv(*column), [size, size]) == LEAK


@pytest.mark.parametrize("size", [None, 5, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_all_padding_on_the_first_is_exact(size: int | None, biased: bool) -> None:
    first = conv(Axis(3, 1, 2, 2), biased=biased)
    assert first.then_failure(conv(Axis(3)), [size]) is None


def test_a_strided_kernel_composes_for_odd_sizes_only() -> None:
    first, after = conv(Axis(3, 2, 1, 1)), conv(PLAIN)
    failures = {size: first.then_failure(after, [size]) for size in (5, 6, 7, 8, None)}
    assert failures == {5: None, 6: ZEROS, 7: None, 8: ZEROS, None: ZEROS}


def test_branches_need_one_stride_and_one_size() -> None:
    failure = conv(Axis(1, 2)).plus_failure(conv(PLAIN), [6])
    assert failure == "the branches have strides 2 and 1"
    assert conv(Axis(3)).plus_failure(conv(PLAIN), [6]) == "the branches have different sizes"
    half, floored = conv(Axis(1, 2)), conv(Axis(2, 2))
    assert half.plus_failure(floored, [6]) is None
    assert half.plus_failure(floored, [7]) == "the branches have different sizes"
    assert half.plus_failure(floored, [None]) == "the branches have different sizes"


def test_shapes_and_costs() -> None:
    first = Geometry(4, 8, (PLAIN, Axis()), 4)
    after = Geometry(8, 6, (Axis(2, 2), Axis()), 2, biased=True)
    both = first.then(after)
    assert both == Geometry(4, 6, (Axis(4, 2, 1, 1), Axis()), 2, True)
    assert both.kernel == (4, 1)
    assert both.output_sizes([7, 5]) == (3, 5)
    assert both.macs([7, 5]) == 6 * (3 * 5) * 2 * 4
    assert first.plus(Geometry(4, 8, (Axis(), Axis()), 2)).groups == 2
    assert first.beside(first) == Geometry(4, 16, (PLAIN, Axis()))


@pytest.mark.parametrize("size", range(5, 12))
@pytest.mark.parametrize("axis", [Axis(1, 3, 0, -2), Axis(2, 2, -1, -3), Axis(1, 1, 0, -1)])
def test_no_more_is_cropped_than_the_sizes_take(axis: Axis, size: int) -> None:
    fitted = axis.fitted(size)
    assert fitted.output_size(size) == axis.output_size(size)
    assert axis.high <= fitted.high <= 0
    assert (
        fitted.high == 0
        or fitted.stride == 1
        or Axis.output_size(Axis(axis.taps, axis.stride, axis.low, fitted.high + 1), size)
        > axis.output_size(size)
    )
    assert axis.fitted(None) == axis


def test_a_crop_counts_as_one_slice_an_axis() -> None:
    shape = conv(Axis(3, 1, -1, 2), Axis(1, 1, 1, 1))
    assert shape.crops == 1
    assert shape.uncut == conv(Axis(3, 1, 0, 2), Axis(1, 1, 1, 1))
    assert shape.uncut.crops == 0
