"""A graph as stable text: two graphs print alike exactly when they have the same structure."""

from textwrap import indent
from typing import Any

from torch.fx import GraphModule, Node

from passfx.graph import query
from passfx.graph.query import arguments, attribute, is_call, is_constant, op_name, tensor


def to_text(graph_module: GraphModule) -> str:
    """One line a node: `%1 = conv2d(x, f32[8, 3, 3, 3], ...) : f32[1, 8, 6, 6]`.

    Results are numbered, constants stand as their dtype and shape, default arguments are filled
    in, so that neither the names nor the spelling of a call matter.
    """
    names: dict[Node, str] = {}
    lines: list[str] = []
    calls = 0

    def show(item: Any) -> str:
        if isinstance(item, Node):
            return names[item]
        if isinstance(item, list | tuple):
            return f"[{', '.join(map(show, item))}]"
        return str(item)

    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            names[node] = node.name
            lines.append(f"{node.name} : {_type(node)}")
        elif is_constant(node):
            names[node] = _type(node)
        elif node.op == "get_attr":  # a branch of torch.cond
            branch = to_text(attribute(graph_module, str(node.target)))
            names[node] = "{\n" + indent(branch, "  ") + "\n}"
        elif node.op == "output":
            lines.append(f"return {show(node.args[0])}")
        else:
            names[node] = f"%{calls}"
            calls += 1
            given = arguments(node).values() if is_call(node) else node.args
            call = f"{op_name(node)}({', '.join(map(show, given))})"
            lines.append(f"{names[node]} = {call} : {_type(node)}")
    return "\n".join(lines)


def _type(node: Node) -> str:
    fake = tensor(node)
    if fake is None:
        return "-"
    kind = query.dtype_name(fake.dtype).replace("float", "f").replace("int", "i")
    return f"{kind}[{', '.join(map(str, fake.shape))}]"
