"""Epilogues of convolutions: FusedConv, and back."""

import ast
from collections.abc import Iterator

import onnx_ir as ir

from passfx.export.base import FilePass
from passfx.record import Refusal, Rewrite

DOMAIN = "com.microsoft"
ACTIVATIONS = ("Relu", "Tanh")


class FuseEpilogues(FilePass):
    """Convolution, bias, shortcut and activation in one operator of ONNX Runtime.

        Conv → Add(·, z) → Relu|Tanh   becomes   FusedConv(x, weight, bias, z)
        Conv → Relu|Tanh               becomes   FusedConv(x, weight, bias)

    com.microsoft.FusedConv is one cuDNN call on the CUDA provider, which launches each of the four
    alone otherwise; it saves their launches and their passes over memory, and nothing in the model
    of costs speaks against it. Whether it wins is measured by `passfx tune`. The CPU provider has
    it too.

    Where both operands of the addition are convolutions, it is the deeper one that is fused, so
    that the other is ready before it starts and nothing waits.

    Kept as they are, and refused with a reason:

    1. another dtype than float32: the operator has no kernel for it;
    2. another convolution than in two dimensions;
    3. padding that differs between two sides: the CUDA kernel computes more and slices afterwards,
       without regard to z;
    4. a convolution or a sum that something else reads too;
    5. a z that is broadcast, or whose shape is not known to be that of the convolution.
    """

    name = "fuse-epilogues"

    def rewrite(self, model: ir.Model) -> tuple[list[Rewrite], list[Refusal]]:
        graph = model.graph
        depths = _depths(graph)
        rewrites: list[Rewrite] = []
        refusals: list[Refusal] = []
        for activation in [node for node in graph if _is(node, *ACTIVATIONS)]:
            reasons: list[Refusal] = []
            for conv, add in sorted(_chains(activation), key=lambda pair: -depths[pair[0]]):
                reason = _refuse(conv, add)
                if reason is None:
                    rewrites.append(_fuse(graph, conv, add, activation))
                    reasons = []
                    break
                reasons.append(Refusal(str(conv.name), module_path(conv), reason))
            refusals += reasons
        if rewrites:
            model.opset_imports.setdefault(DOMAIN, 1)
        return rewrites, refusals


def split_epilogues(model: ir.Model) -> list[Rewrite]:
    """Undo `FuseEpilogues`, in place, for files that came with FusedConv."""
    graph = model.graph
    rewrites = [_split(graph, node) for node in list(graph) if _is_splittable(node)]
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.opset_imports.pop(DOMAIN, None)
    return rewrites


def module_path(node: ir.Node) -> str:
    """The module that a node came from, "layer1.0.conv2", as torch's exporter recorded it."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _is(node: ir.Node | None, *op_types: str) -> bool:
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def _depths(graph: ir.Graph) -> dict[ir.Node, int]:
    """The length of the longest path from the graph's inputs to each node."""
    depths: dict[ir.Node, int] = {}
    for node in graph:
        before = [item.producer() for item in node.inputs if item is not None]
        depths[node] = 1 + max((depths.get(item, 0) for item in before if item), default=0)
    return depths


def _chains(activation: ir.Node) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """The convolutions that an activation follows, and the addition between, if there is one."""
    (read,) = activation.inputs
    before = read.producer() if read is not None else None
    if before is None:
        return
    if _is(before, "Conv"):
        yield before, None
    if _is(before, "Add"):
        for item in before.inputs:
            operand = item.producer() if item is not None else None
            if operand is not None and _is(operand, "Conv"):
                yield operand, before


def _refuse(conv: ir.Node, add: ir.Node | None) -> str | None:
    """Why a chain cannot be fused."""
    (result,) = conv.outputs
    weight = conv.inputs[1]
    if result.dtype != ir.DataType.FLOAT:
        return f"FusedConv has no kernel for {result.dtype}"
    if weight is None or weight.shape is None or len(weight.shape) != 4:
        return "FusedConv is for convolutions in two dimensions"
    pads = conv.attributes.get_ints("pads", [0, 0, 0, 0])
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "the padding depends on the size of the image"
    if list(pads[:2]) != list(pads[2:]):
        return f"the padding {tuple(pads)} differs between two sides"
    for value in (result, *(add.outputs if add is not None else ())):
        if len(value.uses()) != 1 or value.is_graph_output():
            return f"{value.name} is read by something else too"
    if add is not None and not _same_shape(result, _shortcut(conv, add)):
        return "the shortcut has not the known shape of the convolution's result"
    return None


def _shortcut(conv: ir.Node, add: ir.Node) -> ir.Value:
    """The operand of an addition that is not the convolution."""
    (other,) = [item for item in add.inputs if item is not conv.outputs[0]]
    assert other is not None
    return other


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values have one shape, of known sizes and names."""
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(
        isinstance(a, int) or (isinstance(a, ir.SymbolicDim) and a.value is not None)
        for a in first.shape
    ) and list(first.shape) == list(second.shape)


def _fuse(graph: ir.Graph, conv: ir.Node, add: ir.Node | None, activation: ir.Node) -> Rewrite:
    inputs = list(conv.inputs)
    if add is not None:
        inputs = [*inputs, *[None] * (3 - len(inputs)), _shortcut(conv, add)]
    fused = ir.Node(
        DOMAIN,
        "FusedConv",
        inputs,
        [*conv.attributes.values(), ir.AttrString("activation", activation.op_type)],
        name=activation.name,
        metadata_props=dict(conv.metadata_props),
    )
    graph.insert_before(activation, fused)
    removed = [node for node in (activation, add, conv) if node is not None]
    _replace(graph, activation, fused.outputs[0])
    for node in removed:
        graph.remove(node, safe=True)
    what = f"conv + {'shortcut + ' if add is not None else ''}{activation.op_type.lower()}"
    return Rewrite(
        at=str(conv.name),
        module=module_path(conv),
        what=f"{what} → FusedConv",
        removed=tuple(str(node.name) for node in reversed(removed)),
        added=(str(fused.name),),
        error=None,
    )


def _is_splittable(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "FusedConv") and node.attributes.get_string(
        "activation", ""
    ) in ACTIVATIONS


def _split(graph: ir.Graph, fused: ir.Node) -> Rewrite:
    inputs = list(fused.inputs)
    z = inputs.pop() if len(inputs) == 4 else None
    if inputs[-1] is None:
        inputs.pop()
    attributes = [item for name, item in fused.attributes.items() if name != "activation"]
    props, name = dict(fused.metadata_props), str(fused.name)
    conv = ir.Node("", "Conv", inputs, attributes, name=f"{name}_conv", metadata_props=props)
    added = [conv]
    if z is not None:
        added.append(ir.Node("", "Add", [conv.outputs[0], z], name=f"{name}_add"))
    op_type = fused.attributes.get_string("activation", "")
    assert op_type is not None
    added.append(ir.Node("", op_type, [added[-1].outputs[0]], name=name))
    result = fused.outputs[0]
    for node in added:
        node.outputs[0].name = f"{result.name}_{node.op_type.lower()}"
        node.outputs[0].type, node.outputs[0].shape = result.type, result.shape
        graph.insert_before(fused, node)
    _replace(graph, fused, added[-1].outputs[0])
    graph.remove(fused, safe=True)
    return Rewrite(
        at=name,
        module=module_path(conv),
        what=f"FusedConv → {' + '.join(node.op_type for node in added)}",
        removed=(name,),
        added=tuple(str(node.name) for node in added),
        error=None,
    )


def _replace(graph: ir.Graph, old: ir.Node, value: ir.Value) -> None:
    """Let everyone read `value` instead of the result of `old`, under the same name."""
    (result,) = old.outputs
    value.type, value.shape = result.type, result.shape
    name = result.name
    ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
    result.name, value.name = f"{name}_replaced", name
