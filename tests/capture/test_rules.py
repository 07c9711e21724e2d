"""Rules of sizes as values: what they say, and how they refuse."""

import copy
import pickle

import pytest
import torch

from passfx.capture.rules import Place, SizeRule, condition_of, said, satisfied

X, Y = Place(0, "x", 2), Place(1, "y", 0)


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("p0 < 100", "at most 99"),
        ("p0 > 4", "at least 5"),
        ("p0 >= 1", "at least 1"),
        ("p0 % 2 == 0", "even"),
        ("(p0 % 2) == 1", "odd"),
        ("(2*p0) % 32 == 0", "a multiple of 16"),
        ("p0 % 16 == 4", "a multiple of 16 plus 4"),
        ("p0 % 16 == 0 and p0 >= 48", "a multiple of 16 and at least 48"),
        ("p0 >= 3 and p0 <= 9", "at least 3 and at most 9"),
        ("p0 != 7", "other than 7"),
        ("p0 == 7", "exactly 7"),
        ("1 + (p0 - 1) // 32 != 1", "at least 33"),
        ("p0 < 100000", "at most 99999"),
        ("p0 < 1000000000", "such that x_2 < 1000000000"),
        ("p0 // 16 != 2", "such that x_2 // 16 != 2"),
    ],
)
def test_a_condition_on_one_size_in_words(formula: str, text: str) -> None:
    assert said(formula, [X]) == text


def test_a_condition_on_two_sizes_in_words() -> None:
    assert said("p0 == p1", [X, Y]) == "equal to axis 0 of y"
    assert said("p0 == 1 + torch.sym_max(1, p1)", [X, Y]) == "such that x_2 == 1 + max(1, y_0)"


def test_a_condition_that_divides_by_zero_is_not_fulfilled() -> None:
    condition = condition_of("p0 // (p0 // 16) == 16", 1)
    assert satisfied(condition, [32]) and not satisfied(condition, [8])


def rule(**changes: object) -> SizeRule:
    fields = {"line": "net.py:12", "origin": "traced"} | changes
    return SizeRule((X,), condition_of("p0 < 100", 1), "at most 99", **fields)  # type: ignore[arg-type]


def test_a_broken_rule_is_one_sentence() -> None:
    rule().check([torch.ones(1, 2, 99)])
    with pytest.raises(ValueError, match="input x") as caught:
        rule().check([torch.ones(1, 2, 200)])
    assert str(caught.value) == (
        "input x has on axis 2 the size 200; it must be at most 99, because the graph follows the "
        "way that the example took (net.py:12)"
    )


def test_a_rule_about_a_whole_number() -> None:
    count = SizeRule((Place(0, "n"),), "lambda p0: p0 >= 3", "at least 3", "model")
    count.check([3])
    with pytest.raises(ValueError, match="input n is 2; it must be at least 3, because the model"):
        count.check([2])


def test_a_rule_can_be_copied_and_kept() -> None:
    for twin in (copy.deepcopy(rule()), pickle.loads(pickle.dumps(rule()))):
        assert twin == rule() and twin.holds(lambda place: 99)


def test_a_rule_as_json() -> None:
    assert rule().to_dict() == {
        "input": "x", "axis": 2, "rule": "at most 99", "origin": "traced", "line": "net.py:12",
    }  # fmt: skip
