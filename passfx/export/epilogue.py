"""Epilogues of convolutions: FusedConv, and back."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from passfx.export.base import FilePass, module_path
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
        depths: dict[ir.Node, int] = {}  # the longest path from the graph's inputs to each node
        for node in model.graph:
            depths[node] = 1 + max((depths.get(item, 0) for item in node.predecessors()), default=0)
        rewrites: list[Rewrite] = []
        refusals: list[Refusal] = []
        for activation in [node for node in model.graph if _is(node, *ACTIVATIONS)]:
            reasons: list[Refusal] = []
            for conv, add in sorted(_chains(activation), key=lambda pair: -depths[pair[0]]):
                reason = _refuse(conv, add)
                if reason is None:
                    rewrites.append(_fuse(model.graph, conv, add, activation))
                    break
                reasons.append(Refusal(str(conv.name), module_path(conv), reason))
            else:
                refusals += reasons
        if rewrites:
            model.opset_imports.setdefault(DOMAIN, 1)
        return rewrites, refusals


def split_epilogues(model: ir.Model) -> list[Rewrite]:
    """Undo `FuseEpilogues`, in place, for files that came with FusedConv."""
    rewrites = [
        _split(model.graph, node)
        for node in list(model.graph)
        if (node.domain, node.op_type) == (DOMAIN, "FusedConv") and _activation(node) in ACTIVATIONS
    ]
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.opset_imports.pop(DOMAIN, None)
    return rewrites


def _is(node: ir.Node, *op_types: str) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def _chains(activation: ir.Node) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """The convolutions that an activation follows, and the addition between, if there is one."""
    for before in activation.predecessors():
        if _is(before, "Conv"):
            yield before, None
        elif _is(before, "Add"):
            yield from ((conv, before) for conv in before.predecessors() if _is(conv, "Conv"))


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
    if add is not None:
        shape = result.shape
        if shape is None or shape.has_unknown_dim() or shape != _shortcut(conv, add).shape:
            return "the shortcut has not the known shape of the convolution's result"
    return None


def _shortcut(conv: ir.Node, add: ir.Node) -> ir.Value:
    """The operand of an addition that is not the convolution."""
    (other,) = [item for item in add.inputs if item is not conv.outputs[0]]
    assert other is not None
    return other


def _fuse(graph: ir.Graph, conv: ir.Node, add: ir.Node | None, activation: ir.Node) -> Rewrite:
    inputs = list(conv.inputs)
    if add is not None:
        inputs += [*[None] * (3 - len(inputs)), _shortcut(conv, add)]
    attributes = [*conv.attributes.values(), ir.AttrString("activation", activation.op_type)]
    name, props = activation.name, dict(conv.metadata_props)
    fused = ir.Node(DOMAIN, "FusedConv", inputs, attributes, name=name, metadata_props=props)
    what = f"conv + {'shortcut + ' if add is not None else ''}{activation.op_type.lower()}"
    removed = [node for node in (conv, add, activation) if node is not None]
    return _replace(graph, conv, f"{what} → FusedConv", removed, [fused])


def _split(graph: ir.Graph, fused: ir.Node) -> Rewrite:
    inputs, name = list(fused.inputs), str(fused.name)
    z = inputs.pop() if len(inputs) == 4 else None
    if inputs[-1] is None:
        inputs.pop()
    attributes = [item for item in fused.attributes.values() if item.name != "activation"]
    props = dict(fused.metadata_props)
    added = [ir.Node("", "Conv", inputs, attributes, name=f"{name}_conv", metadata_props=props)]
    if z is not None:
        added.append(ir.Node("", "Add", [added[0].outputs[0], z], name=f"{name}_add"))
    added.append(ir.Node("", _activation(fused), [added[-1].outputs[0]], name=name))
    (result,) = fused.outputs
    for node in added:
        node.outputs[0].name = f"{result.name}_{node.op_type.lower()}"
        node.outputs[0].type, node.outputs[0].shape = result.type, result.shape
    what = f"FusedConv → {' + '.join(node.op_type for node in added)}"
    return _replace(graph, fused, what, [fused], added)


def _activation(fused: ir.Node) -> str:
    return fused.attributes.get_string("activation") or ""


def _replace(
    graph: ir.Graph, at: ir.Node, what: str, removed: Sequence[ir.Node], added: Sequence[ir.Node]
) -> Rewrite:
    """Let everyone read the last of the new nodes instead of the last of the old ones."""
    old, new = removed[-1], added[-1]
    ir.convenience.replace_nodes_and_values(graph, old, removed, added, old.outputs, new.outputs)
    before, after = (tuple(str(node.name) for node in nodes) for nodes in (removed, added))
    return Rewrite(str(at.name), module_path(at), what, before, after, None)
