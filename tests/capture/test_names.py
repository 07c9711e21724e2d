"""The names of the inputs and outputs of a captured graph."""

import copy
import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from passfx.capture.program import capture
from passfx.errors import CaptureError
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


@dataclasses.dataclass
class Detected:
    boxes: Tensor
    scores: Tensor | None = None
    levels: Any = ()
    threshold: float = 0.5

    def __post_init__(self) -> None:
        assert self.boxes.ndim == 2  # of tensors alone


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch 2.11 warns of its own copies
def test_an_unregistered_class_is_returned_and_names_its_results() -> None:
    def body(x: Tensor) -> Any:
        return {"found": Detected(x + 1, levels=[x * 2, Pair(x.sum(1), None)]), "x": Pair(x, 3)}

    model, known = function(body), set(pytree.SUPPORTED_NODES)
    found = captured(model, image(2, 3), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    assert set(pytree.SUPPORTED_NODES) == known
    assert found.output_names == (
        "found_boxes", "found_levels_0", "found_levels_1_first", "x_first",
    )  # fmt: skip
    assert found.rules == ()  # that is, the trials compared its tensors
    x = image(5, 3)
    for module in (found.graph_module, copy.deepcopy(found.graph_module)):
        result, wanted = module(x), model(x)
        assert result["x"].second == 3
        assert isinstance(result["found"], Detected)
        assert (result["found"].scores, result["found"].threshold) == (None, 0.5)
        assert torch.equal(result["found"].boxes, wanted["found"].boxes)
        assert torch.equal(result["found"].levels[1].first, wanted["found"].levels[1].first)


def test_a_size_in_an_unregistered_class_follows_the_input() -> None:
    found = captured(
        function(lambda x: Detected(x, threshold=x.shape[0])),
        image(2, 3),
        dynamic_shapes={"x": {0: Dim.DYNAMIC}},
    )
    assert found.output_names == ("boxes",)
    assert found.graph_module(image(7, 3)).threshold == 7


class ModelOutput(OrderedDict[str, Any]):
    """Registered with pytree when it is subclassed, as model libraries do."""

    keyed = False

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(
            cls,
            lambda item: ([*item.values()], [*item]),
            lambda held, keys: cls(**dict(zip(keys, held, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
            flatten_with_keys_fn=pytree._dict_flatten_with_keys if cls.keyed else None,
        )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclasses.dataclass
class Unkeyed(ModelOutput):
    logits: Any = None
    pooled: Any = None
    hidden: Any = None


class KeyedOutput(ModelOutput):
    keyed = True


@dataclasses.dataclass
class Keyed(KeyedOutput):
    logits: Any = None
    pooled: Any = None
    hidden: Any = None


@pytest.mark.parametrize("kind", [Unkeyed, Keyed])
def test_a_class_that_a_library_registered_names_its_results(kind: Any) -> None:
    found = captured(function(lambda x: kind(x + 1, hidden=(x * 2, Detected(x)))), image(2, 3))
    assert found.output_names == ("logits", "hidden_0", "hidden_1_boxes")
    result = found.graph_module(image(2, 3))
    assert type(result) is kind
    assert list(result) == ["logits", "hidden"]
    assert isinstance(result.hidden[1], Detected)


def test_such_a_class_is_an_input_too() -> None:
    x, add = image(2, 3), function(lambda x: x.logits + x.hidden)
    dims = {"x": [{0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}]}
    found = captured(add, Keyed(x, hidden=x + 1), dynamic_shapes=dims)
    assert found.input_names == ("x_logits", "x_hidden")
    assert torch.equal(found.graph_module(Keyed(x, hidden=x + 1)), x + (x + 1))
    with pytest.raises(CaptureError, match=r"flatten_with_keys_fn.*Or give its tensors in a dict$"):
        captured(add, Unkeyed(x, hidden=x))
    with pytest.raises(
        CaptureError, match=r"call torch\.export\.register_dataclass\(Detected\) bef"
    ):
        captured(function(lambda x: x[0].boxes), [Detected(x)])


def test_a_result_that_may_hide_tensors_is_refused() -> None:
    with pytest.raises(
        CaptureError,
        match="^Function cannot be captured: the result holds an object of function, in which no "
        "tensors can be seen; return tensors in tuples, lists, dicts or dataclasses$",
    ):
        capture(function(lambda x: (x, lambda: x)), (image(2),))
