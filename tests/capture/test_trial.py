"""Which of the tracer's bounds are rules: those that the model and its graph show to be."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from passfx.capture.bounds import Bounds
from passfx.capture.program import capture
from passfx.capture.trial import later_rules
from passfx.errors import CaptureError
from passfx.pipeline import optimize_graph
from tests.capture.programs import function, image

ANY = Dim.DYNAMIC


def told(model: nn.Module, *args: Tensor, shapes: Any) -> list[tuple[str, str]]:
    found = capture(model, args, dynamic_shapes=shapes)
    return [(rule.text, rule.origin) for rule in found.rules]


def test_sizes_that_only_name_a_layout_are_no_rules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    found = capture(model, (image(2, 3, 16, 16),), dynamic_shapes=({0: ANY, 2: ANY, 3: ANY},))
    bounds = Bounds(found.graph_module, found.flat_inputs)
    assert found.rules == () and [*bounds.guards()]  # the tracer has some, and none matters


def test_static_sizes_have_no_rules() -> None:
    assert told(nn.ReLU(), image(2, 3), shapes=None) == []


def test_a_branch_that_changes_nothing_is_no_rule() -> None:
    model = function(lambda x: x + x if x.shape[0] > 3 else 2 * x)
    assert told(model, image(5, 2), shapes=({0: ANY},)) == []


def test_a_branch_far_away_is_a_rule_although_it_cannot_be_tried() -> None:
    model = function(lambda x: x * 2 if x.shape[0] < 10**9 else x)
    text = "such that x_0 < 1000000000"
    assert told(model, image(5, 2), shapes=({0: ANY},)) == [(text, "traced")]


def test_derived_and_shared_dimensions_are_declared() -> None:
    half = Dim("half", min=2, max=8)
    model = function(lambda x, y: (x * 2, y + 1))
    shapes = {"x": {0: 2 * half, 1: half}, "y": {0: half}}
    rules = told(model, image(8, 4), image(4, 3), shapes=shapes)
    assert {origin for _, origin in rules} == {"declared"}
    assert "equal to axis 1 of x" in {text for text, _ in rules}


def test_empty_inputs_are_refused_where_the_graph_is_wrong_for_them() -> None:
    model = function(lambda x: torch.ones(2, 2) if x.shape[0] == 0 else x * 2)
    assert told(model, image(4, 2), shapes=({0: ANY},)) == [("at least 1", "empty")]


class Counting(nn.Module):
    """Changes its own attributes and notes which way it went."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.scale) if x.shape[0] > 2 else x


def test_the_model_is_left_as_it_was() -> None:
    model = Counting().train()
    before = copy.deepcopy(model)
    assert told(model, image(5, 3), shapes=({0: ANY},)) == [("at least 3", "traced")]
    assert model.training and vars(model).keys() == vars(before).keys()
    for (name, item), (_, old) in zip(
        model.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert torch.equal(item, old), name


def test_a_guard_that_a_pass_makes_becomes_a_rule() -> None:
    shapes = ({0: ANY}, {0: ANY})
    found = capture(
        function(lambda x, y: (x * 2, y * 2)), (image(4, 2), image(4, 2)), dynamic_shapes=shapes
    )
    bounds = Bounds(found.graph_module, found.flat_inputs)
    module, _ = optimize_graph(found, [])
    assert later_rules(bounds, found.rules, found.graph_module, module) == found.rules
    x, y = (node.meta["val"] for node in found.placeholders)
    assert bool(x.shape[0] == y.shape[0])  # what a careless pass would do
    (rule,) = later_rules(bounds, found.rules, found.graph_module, module)
    assert rule.holds(lambda place: 3) and not rule.holds(lambda place: place.index)


def test_checks_of_a_program_are_read_and_not_run() -> None:
    program = torch.export.export(
        function(lambda x: x[:3]), (image(5, 2),), dynamic_shapes=({0: ANY},)
    )
    if not hasattr(program, "_guards_code"):
        pytest.skip("this torch keeps no checks in a program")
    program._guards_code.append("__import__('os').getpid() > 0")
    with pytest.raises(CaptureError, match="the exported program checks .* cannot be read"):
        capture(program)


def test_a_broadcast_that_the_graph_does_too_is_no_reason_to_refuse() -> None:
    both = ({0: ANY}, {0: ANY})
    rules = told(function(lambda x, y: x + y), image(2, 3), image(2, 3), shapes=both)
    assert rules == [("equal to axis 0 of x", "model")]
