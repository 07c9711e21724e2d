"""The sizes and types of nodes: elements, bytes, dtypes, arguments for one or each dimension."""

import pytest
import torch
from torch import Tensor, nn, ops
from torch.fx import Graph, Node
from torch.nn import functional as F

from passfx.graph.query import parameters, reached
from passfx.graph.shapes import dtypes, elements, hint, ints, known_tensor, nbytes, same_sizes
from tests.capture.programs import function
from tests.helpers import captured

aten = ops.aten
DYNAMIC = torch.export.Dim.DYNAMIC


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x))
        return y.to(torch.float16), y.relu()


def nodes_of(dynamic: bool = False) -> dict[str, Node]:
    options = {"dynamic_shapes": ({0: DYNAMIC},)} if dynamic else {}
    program = captured(Net(), torch.randn(2, 3, 5, 6), **options)
    return {node.name: node for node in program.graph_module.graph.nodes}


@pytest.mark.parametrize("dynamic", [False, True])
def test_elements_and_bytes_are_those_of_the_example(dynamic: bool) -> None:
    nodes = nodes_of(dynamic)
    assert isinstance(known_tensor(nodes["relu"]).shape[0], torch.SymInt) == dynamic
    assert hint(known_tensor(nodes["relu"]).shape[0]) == 2
    assert elements(nodes["relu"]) == 2 * 4 * 5 * 6
    assert nbytes(nodes["relu"]) == 4 * 2 * 4 * 5 * 6


def test_dtypes_are_those_of_the_nodes_that_hold_a_tensor() -> None:
    nodes = nodes_of()
    assert dtypes([]) == set()
    assert dtypes(nodes.values()) == {torch.float32, torch.float16}
    assert dtypes([nodes["output"], 3, None]) == set()


def test_a_node_without_a_tensor_has_no_known_one() -> None:
    with pytest.raises(AssertionError):
        known_tensor(Graph().placeholder("x"))


def test_quotients_of_sizes_are_equal_whatever_is_taken_off_before_dividing() -> None:
    def body(x: Tensor) -> tuple[Tensor, ...]:
        cropped = x[..., 3:-3]
        return F.avg_pool1d(x, 2, 3), F.avg_pool1d(cropped, 2, 3), F.avg_pool1d(x, 1, 3)

    options = {"dynamic_shapes": ({2: DYNAMIC},)}
    program = captured(function(body), torch.randn(2, 3, 13), **options)
    pooled, cropped, other = program.graph_module.graph.output_node().args[0]
    (whole, part, third) = (known_tensor(node).shape[2] for node in (pooled, cropped, other))
    assert same_sizes([whole - 1], [part + 1])
    assert same_sizes([(whole + 4) // 2], [(part + 2) // 2 + 2])
    assert not same_sizes([whole], [part])
    assert not same_sizes([whole], [third])


def test_ints_are_one_a_dimension() -> None:
    assert ints(3) == (3,)
    assert ints(3, 2) == ints([3], 2) == ints((3, 3), 2) == (3, 3)
    assert ints([1, 2], 2) == (1, 2)


def test_parameters_are_those_that_a_layer_is_given() -> None:
    nodes = nodes_of()
    names = [str(node.target) for node in parameters(nodes["batch_norm"])]
    assert names == [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    assert [str(node.target) for node in parameters(nodes["conv2d"])] == ["conv.weight"]


def test_what_is_reached_is_in_topological_order() -> None:
    nodes = nodes_of()
    found = reached(nodes["batch_norm"], lambda node: node.users)
    assert found == sorted(found)
    assert {"batch_norm", "relu", "output"} <= {node.name for node in found}
    assert nodes["conv2d"] not in found
    assert reached(nodes["relu"], lambda node: ()) == [nodes["relu"]]
