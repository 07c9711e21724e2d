"""The names of the inputs and outputs of a captured graph."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.programs import Pair, function, image
from tests.helpers import captured


def test_nested_inputs_and_outputs() -> None:
    def body(x: dict[str, Any], y: tuple[Tensor, Tensor]) -> Any:
        return {"sum": x["a"] + y[0], "more": (x["b"][0] * y[1], None, [x["a"]])}

    a, b, c, d = (image(2, 3) for _ in range(4))
    found = captured(function(body), {"a": a, "b": [b]}, (c, d))
    assert found.input_names == ("x_a", "x_b_0", "y_0", "y_1")
    assert found.output_names == ("sum", "more_0", "more_2_0")
    assert [type(item) for item in found.results].count(type(None)) == 1
    result = found.graph_module({"a": a, "b": [b]}, (c, d))
    assert torch.equal(result["sum"], a + c)
    assert torch.equal(result["more"][0], b * d)
    assert result["more"][1] is None
    assert torch.equal(result["more"][2][0], a)


def test_a_tuple_of_results_is_numbered() -> None:
    found = captured(function(lambda x: (x + 1, None, x * 2)), image(2))
    assert found.output_names == ("output_0", "output_2")


def test_a_named_tuple_names_its_results() -> None:
    found = captured(function(lambda x: Pair(x + 1, x * 2)), image(2))
    assert found.output_names == ("first", "second")


def test_names_are_unique_across_inputs_and_outputs() -> None:
    class Echo(nn.Module):
        def forward(self, output: Tensor, a: Tensor) -> Any:
            return {"output": output + 1, "a": a, "b": {"c": a + 1}, "b_c": a + 2}

    found = captured(Echo(), image(2), image(2))
    assert found.input_names == ("output", "a")
    assert found.output_names == ("output_1", "a_1", "b_c", "b_c_1")
