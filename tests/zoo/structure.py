"""What the graphs of whole models are made of."""

from itertools import permutations

from torch.fx import GraphModule, Node

from passfx.graph.query import arguments, op_name, operators
from passfx.jobs.optimize import Optimized
from tests.helpers import ops


def groups(graph_module: GraphModule) -> list[int]:
    """The groups of every convolution, in order."""
    return [
        arguments(node)["groups"] for node in operators(graph_module) if op_name(node) == "conv2d"
    ]


def is_convolution_and_skip(node: Node) -> bool:
    """Whether a node is x + conv(x)."""
    pairs = permutations(node.all_input_nodes, 2) if op_name(node) == "add" else ()
    return any(op_name(a) == "conv2d" and b in a.all_input_nodes for a, b in pairs)


def assert_deployed_form(optimized: Optimized) -> None:
    """No norm and no convolution beside its skip path is left, and groups are what they were."""
    before, after = ops(optimized.captured.graph_module), ops(optimized.module)
    assert before["batch_norm"] > 0 and after["batch_norm"] == 0
    assert after["conv2d"] <= before["conv2d"]
    assert not any(map(is_convolution_and_skip, operators(optimized.module)))
    grouped = {count for count in groups(optimized.captured.graph_module) if count > 1}
    assert {count for count in groups(optimized.module) if count > 1} == grouped
