"""Read-only questions about the nodes of a captured graph: values, constants, arguments, names."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
_CANONICAL_NAMES = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_dropout": "dropout",
    "_to_copy": "to",
    "_unsafe_view": "view",
    "convolution": "conv",
}


def is_call(node: Any, *packets: Any) -> bool:
    """Whether `node` calls an ATen operator of one of these packets (`torch.ops.aten.conv2d`)."""
    return (
        isinstance(node, Node)
        and node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and (not packets or node.target.overloadpacket in packets)
    )


def op_name(node: Node) -> str:
    """The operator as reports name it: the packet, without overload or in-place underscore."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
        name = name if name.endswith("__") else name.removesuffix("_")
        return str(_CANONICAL_NAMES.get(name, name))
    return str(getattr(target, "__name__", target))


def arguments(node: Node) -> dict[str, Any]:
    """Every argument of an operator call by its schema name, defaults filled in."""
    schema = cast(torch._ops.OpOverload, node.target)._schema
    bound = {item.name: item.default_value for item in schema.arguments} | node.kwargs
    return bound | dict(zip(bound, node.args, strict=False))


def parameters(node: Node) -> list[Any]:
    """The weight, bias and statistics that a layer or norm is given, those that it has."""
    bound = arguments(node)
    return [bound[name] for name in _PARAMETERS if bound.get(name) is not None]


def value(node: Any) -> Any:
    """The fake value of a node (`meta["val"]`), or None where the graph carries none."""
    return node.meta.get("val") if isinstance(node, Node) else None


def tensor(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node, or None where its value is not one tensor."""
    fake = value(node)
    return fake if isinstance(fake, torch.Tensor) else None


def tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among some values, which are inputs or results of a graph."""
    return [item for item in values if isinstance(item, torch.Tensor)]


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as torch names it: "float32"."""
    return str(dtype).removeprefix("torch.")


def floating_dtype(model: Any) -> torch.dtype | None:
    """That of the parameters of a module or program; None where it has none."""
    return next((item.dtype for item in model.parameters() if item.is_floating_point()), None)


def is_constant(node: Any) -> bool:
    """Whether `node` reads a parameter, a buffer or a tensor constant."""
    return isinstance(node, Node) and node.op == "get_attr" and tensor(node) is not None


def attribute(module: torch.nn.Module, target: str) -> Any:
    """The object that a dotted `get_attr` target names."""
    return reduce(getattr, target.split("."), module)


def constant(node: Node) -> torch.Tensor:
    """The tensor that a constant node reads, detached from autograd."""
    module = node.graph.owning_module
    assert module is not None
    return cast(torch.Tensor, attribute(module, str(node.target))).detach()


def all_nodes(graph_module: GraphModule) -> Iterator[Node]:
    """The nodes of a graph and of the branches of its conditions and loops."""
    for module in graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    bound = arguments(node)
    return bound.get("train", bound.get("training")) is not False and bound.get("dropout_p") != 0.0


def is_pure(node: Node) -> bool:
    """Whether a node may be removed when unused, and shared when it is written twice."""
    return node.op == "get_attr" or (
        node.op == "call_function"
        and not node.is_impure(impure_random=False)
        and not is_random(node)
    )


def module_path(node: Node) -> str:
    """The path of the module that the node was traced in ("layer1.0.conv1"; "" for the root)."""
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack else ""
    return str(path).split("@")[0].removeprefix("L['self'].").removeprefix("L__self__.")


def reached(start: Node, step: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """`start` and every node that repeated steps from it lead to, in topological order."""
    found, pending = {start}, [start]
    while pending:
        new = set(step(pending.pop())) - found
        found |= new
        pending += new
    return sorted(found)


def source_line(node: Node) -> str | None:
    """`file.py:12` of the user's code that made the node, where the trace recorded it."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'^ *File "([^<].*)", line (\d+)', trace, re.MULTILINE)
    return ":".join(frames[-1]) if frames else None


def operators(graph_module: GraphModule) -> list[Node]:
    """The nodes that compute tensors: operator calls, without size arithmetic and getitem."""
    numbers = int | float | torch.SymInt | torch.SymFloat
    calls = filter(is_call, graph_module.graph.nodes)
    return [node for node in calls if not isinstance(value(node), numbers)]
