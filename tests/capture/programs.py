"""Programs to capture, and what every captured one must be."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_call
from passfx.verify.error import relative_error
from tests.helpers import captured

BATCH = {0: Dim.DYNAMIC}
Pair = namedtuple("Pair", "first second")


class Function(nn.Module):
    """A module without parameters around a function of at most three inputs."""

    def __init__(self, function: Callable[..., Any], inputs: int) -> None:
        super().__init__()
        self.function = function
        self.inputs = inputs

    def forward(self, x: Any, y: Any = None, z: Any = None) -> Any:
        return self.function(*(x, y, z)[: self.inputs])


def function(body: Callable[..., Any]) -> Function:
    return Function(body, body.__code__.co_argcount)


def image(*shape: int) -> Tensor:
    return torch.randn(shape)


def assert_captures(model: nn.Module, *args: Any, tolerance: float = 1e-6) -> GraphModule:
    """The graph gives what the model gives, on copies because either may write to its inputs."""
    graph_module = captured(model, *(item.clone() for item in args)).graph_module
    with torch.no_grad():
        wanted = model.eval()(*(item.clone() for item in args))
    results = run_flat(graph_module, [item.clone() for item in args], double=False)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == expected.dtype
        assert relative_error(result, expected) <= tolerance
    assert_functional(graph_module)
    return graph_module


def assert_functional(graph_module: GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if is_call(node):
            assert not node.target._schema.is_mutable, node.format_node()
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
