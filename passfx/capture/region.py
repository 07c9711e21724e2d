"""The operators of one edit as a program of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from passfx.errors import quiet
from passfx.graph.editor import Edit
from passfx.graph.evaluate import widen
from passfx.graph.query import constant, is_constant


def is_input(item: Any) -> bool:
    """Whether a value is drawn; numbers are written into the program."""
    return isinstance(item, Tensor | list)


def region_program(
    edit: Edit, given: dict[Node, Any], inputs: tuple[Any, ...]
) -> tuple[ExportedProgram, bool]:
    """The old and the new nodes as one program; the old alone where the new do not run."""
    for added in (tuple(edit.added), ()):
        module = _module(edit, given, added)
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(module, inputs), bool(added or not edit.added)
        except Exception:
            if not added:
                raise
    raise AssertionError("the old nodes run")


def _module(edit: Edit, given: dict[Node, Any], added: Sequence[Node]) -> GraphModule:
    root, graph, copies = torch.nn.Module(), Graph(), dict[Node, Any]()
    for node, item in given.items():
        copies[node] = graph.placeholder(node.name) if is_input(item) else item
    nodes = (*edit.match.nodes, *added)
    results = [*edit.replacements, *(edit.replacements.values() if added or not edit.added else ())]
    reads = {read for node in nodes for read in node.all_input_nodes}
    for node in sorted({*nodes, *reads, *results} - copies.keys()):
        if is_constant(node):
            exact = edit.exact.get(node, None)
            root.register_buffer(node.name, widen(constant(node) if exact is None else exact))
            copies[node] = graph.get_attr(node.name)
        elif node.op == "call_function":
            args, kwargs = map_aggregate((node.args, dict(node.kwargs)), widen)
            args, kwargs = map_arg((args, kwargs), copies.__getitem__)
            copies[node] = graph.call_function(node.target, args, kwargs, name=node.name)
    old = [copies[node] for node in edit.replacements]
    graph.output((old, [copies[node] for node in results[len(old) :]]))
    return GraphModule(root, graph)
