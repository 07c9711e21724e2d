"""What a graph says about itself: names, arguments, sizes, purity, places in the user's code."""

import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, ops
from torch.export import Dim
from torch.fx import Graph, Node
from torch.nn import functional

from passfx.graph.query import (
    arguments,
    attribute,
    constant,
    is_call,
    is_constant,
    is_pure,
    is_random,
    module_path,
    op_name,
    operators,
    source_line,
    tensor,
    value,
)
from passfx.graph.shapes import hint, same_sizes, same_type
from tests.helpers import captured

aten = ops.aten


def call(target: Any, *args: Any, **kwargs: Any) -> Node:
    return Graph().call_function(target, args, kwargs)


class Doubler(nn.Module):
    """Called twice by its parent, with a weight and arithmetic of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight  # the product


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Sequential(Doubler(), nn.Linear(3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.layer1(x))
        first, _ = torch.split(torch.relu(y), 2, dim=1)
        return first + x.shape[0]


@pytest.fixture(scope="module")
def net() -> dict[str, Node]:
    torch.manual_seed(0)
    program = captured(Net(), torch.randn(4, 3), dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    return {node.name: node for node in program.graph_module.graph.nodes}


def test_arguments_are_given_by_name_with_the_defaults_filled_in() -> None:
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    conv = graph.call_function(aten.conv2d.default, (x, weight), {"padding": [1, 1]})
    assert arguments(conv) == {
        "input": x,
        "weight": weight,
        "bias": None,
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
    }


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten._native_batch_norm_legit_no_training.default, "batch_norm"),
        (aten.native_batch_norm.default, "batch_norm"),
        (aten.native_layer_norm.default, "layer_norm"),
        (aten.convolution.default, "conv"),
        (aten._unsafe_view.default, "view"),
        (aten._to_copy.default, "to"),
        (aten.to.dtype, "to"),
        (aten.relu_.default, "relu"),
        (aten.add_.Tensor, "add"),
        (aten.__and__.Tensor, "__and__"),
        (operator.getitem, "getitem"),
    ],
)
def test_op_name_is_canonical(target: Any, name: str) -> None:
    assert op_name(call(target)) == name


def test_is_call_is_of_the_packets_asked_for() -> None:
    relu = call(aten.relu.default)
    assert is_call(relu) and is_call(relu, aten.conv2d, aten.relu)
    assert not is_call(relu, aten.conv2d)
    assert not is_call(call(operator.getitem)) and not is_call(None)


@pytest.mark.parametrize(
    ("node", "random"),
    [
        (call(aten.rand.default, [2]), True),
        (call(aten.bernoulli.default, None), True),
        (call(aten.dropout.default, None, 0.5, True), True),
        (call(aten.dropout.default, None, 0.5, False), False),
        (call(aten.rrelu.default, None, 0.1, 0.3, True), True),
        (call(aten.rrelu.default, None, 0.1, 0.3), False),
        (call(aten.scaled_dot_product_attention.default, None, None, None, None, 0.1), True),
        (call(aten.scaled_dot_product_attention.default, None, None, None), False),
        (call(aten.relu.default, None), False),
    ],
)
def test_random_operators_are_those_that_draw_numbers(node: Node, random: bool) -> None:
    assert is_random(node) is random
    assert is_pure(node) is not random


def test_inputs_mutations_and_assertions_are_not_pure() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    assert not is_pure(x)
    assert not is_pure(graph.call_function(aten.relu_.default, (x,)))
    assert not is_pure(graph.call_function(aten._assert_async.msg, (x, "positive")))
    assert is_pure(graph.call_function(operator.getitem, (x, 0)))


def test_constants_are_pure_and_are_read_without_autograd(net: dict[str, Node]) -> None:
    weight = net["layer1_0_0_weight"]
    assert is_constant(weight) and is_pure(weight)
    assert not is_constant(net["x"]) and not is_constant(net["relu"])
    module = weight.graph.owning_module
    assert module is not None
    assert constant(weight).data_ptr() == attribute(module, "layer1.0.0.weight").data_ptr()
    assert not constant(weight).requires_grad


class Sizes(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x + 1, y + 1, torch.cat([x, x]), x[:, :1]


def test_sizes_are_the_same_only_if_they_are_for_every_dynamic_size() -> None:
    shapes = {"x": {0: Dim("a", min=2)}, "y": {0: Dim("b", min=2)}}
    program = captured(Sizes(), torch.randn(4, 3), torch.randn(4, 3), dynamic_shapes=shapes)
    x, y = program.placeholders
    x_plus, y_plus, doubled, narrow = program.results
    assert same_type(x, x_plus) and same_type(y, y_plus)
    assert not same_type(x, y)  # equal in the example, by chance
    assert not same_type(x, doubled) and not same_type(x, narrow)
    batch = tensor(x).shape[0]
    assert same_sizes([batch * 2, 3], tensor(doubled).shape)
    assert not same_sizes([batch], [batch, 1]) and not same_sizes([batch], [4])
    assert [hint(size) for size in tensor(doubled).shape] == [8, 3]


class Casts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.double(), x.reshape(-1), x.relu()


def test_types_are_shape_and_dtype() -> None:
    program = captured(Casts(), torch.randn(2, 3))
    (x,) = program.placeholders
    assert [same_type(x, result) for result in program.results] == [False, False, True]
    assert not same_type(x, 1.0)


def test_values_are_fake_and_only_one_tensor_is_a_tensor(net: dict[str, Node]) -> None:
    (split,) = (node for node in net.values() if op_name(node).startswith("split"))
    assert tensor(split) is None and len(value(split)) == 2
    assert type(tensor(net["x"])).__name__ == "FakeTensor"
    assert value(call(aten.relu.default)) is None and value(3) is None


def test_operators_leave_out_sizes_and_getitem(net: dict[str, Node]) -> None:
    (x,) = (node for node in net.values() if node.op == "placeholder")
    names = [op_name(node) for node in operators(x.graph.owning_module)]
    assert [name.removesuffix("_with_sizes") for name in names] == [
        *["mul", "linear"] * 2,
        *["relu", "split", "add"],
    ]
    assert {"sym_size", "getitem"} <= {op_name(node) for node in net.values()}


def test_module_path_is_the_innermost_module(net: dict[str, Node]) -> None:
    paths = [module_path(net[name]) for name in ("mul", "linear", "relu", "x")]
    assert paths == ["layer1.0.0", "layer1.0.1", "", ""]


def test_module_path_of_a_second_call_is_that_of_the_first(net: dict[str, Node]) -> None:
    paths = [module_path(node) for node in net.values() if is_call(node, aten.mul, aten.linear)]
    assert paths == ["layer1.0.0", "layer1.0.1"] * 2


def test_source_line_is_the_users(net: dict[str, Node]) -> None:
    lines = Path(__file__).read_text().splitlines()
    (number,) = (at for at, line in enumerate(lines, 1) if line.endswith("# the product"))
    assert source_line(net["mul"]) == f"{__file__}:{number}"
    assert source_line(net["x"]) is None


def test_source_line_survives_odd_paths_and_odd_code() -> None:
    node = call(functional.relu)
    node.meta["stack_trace"] = (
        'File "/a, b/net.py", line 12, in forward\n    raise IOError("File not found")'
    )
    assert source_line(node) == "/a, b/net.py:12"
