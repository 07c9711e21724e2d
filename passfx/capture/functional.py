"""The traced program as a pure function whose constants are read by `get_attr` nodes."""

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec

from passfx.errors import CaptureError, first_line
from passfx.graph.query import (
    all_nodes,
    arguments,
    is_call,
    is_constant,
    is_random,
    module_path,
    op_name,
    reached,
    source_line,
    tensor,
)
from passfx.record import PassReport, Rewrite

aten = torch.ops.aten

# By name, because the first torch that passfx takes does not know them all.
_WRITTEN = {
    "BUFFER_MUTATION": "buffer",
    "PARAMETER_MUTATION": "parameter",
    "USER_INPUT_MUTATION": "input",
}
_BATCH_NORMS = (aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit)


def refuse_constant_writes(program: ExportedProgram, model: str) -> None:
    """Raise CaptureError where a traced program writes to a tensor that is a plain attribute."""
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in filter(is_call, program.graph.nodes):
        written = node
        while is_call(written) and (written.target.is_view or written.target._schema.is_mutable):
            written = written.args[0]
        if (
            node.target._schema.is_mutable
            and not is_call(node, aten.detach_)  # of every tensor that is made from numbers
            and isinstance(written, Node)
            and written.name in constants
        ):
            line = source_line(node)
            raise CaptureError(
                f"{model} writes to its own {constants[written.name]!r}"
                f"{f' at {line}' if line else ''}, which a fixed graph cannot do; make it an input "
                "and an output"
            )


def functionalize(program: ExportedProgram, model: str) -> ExportedProgram:
    """The program without in-place operators; `model` is what errors call it.

    Raises:
        CaptureError: torch cannot make it functional.
    """
    try:
        return _decomposed(program)
    except Exception as error:
        raise CaptureError(f"{model} cannot be made functional: {first_line(error)}") from error


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """What `program.run_decompositions({})` gives, which keeps composite operators as they are.

    torch registers each of its 500 composite operators for that, at every call, which takes three
    times as long as all the rest for a small model. Here are only those that the program calls.
    Another torch than those that passfx knows gets the call itself.
    """
    try:
        from torch._export.utils import _is_preservable_cia_op, _special_op_to_preserve_cia
        from torch.export.exported_program import _decompose_exported_program
    except ImportError:
        return cast(ExportedProgram, program.run_decompositions({}))
    called: Any = {node.target for node in filter(is_call, all_nodes(program.graph_module))}
    kept = dict.fromkeys(filter(_is_preservable_cia_op, called), _special_op_to_preserve_cia)
    functional = _decompose_exported_program(
        program,
        cia_to_decomp=kept,
        python_decomp_table={},
        joint_loss_index=None,
        decompose_custom_triton_ops=False,
    )
    return cast(ExportedProgram, functional)


def refuse_writes(program: ExportedProgram, model: str) -> tuple[str, ...]:
    """Refuse a functional program that writes to what outlives a call.

    A buffer or a parameter may not be written to at all. An input may where the caller loses
    nothing by a graph that leaves it alone: where the new value is returned, or where it is made
    of that input alone and read by the rest of the graph (an in-place activation or normalisation
    at the start of a net, which saves memory). What carries other data into an input, as a cache
    does, counts a call in integers, or is read by nobody, is meant for the caller.

    Returns:
        A sentence for the report about each input that is written to and was accepted.

    Raises:
        CaptureError: with the name, the line of the user's code, and the way out.
    """
    specs = program.graph_signature.output_specs
    results = cast(Sequence[Any], program.graph.output_node().args[0])
    returned = {
        node
        for spec, node in zip(specs, results, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
    }
    notes = []
    for spec, node in zip(specs, results, strict=True):
        kind = _WRITTEN.get(spec.kind.name)
        if kind is None:
            continue
        line = source_line(node)
        what, at = f"its {kind} {spec.target!r}", f" at {line}" if line else ""
        if kind != "input":
            raise CaptureError(
                f"{model} changes {what} in eval mode{at}, which a fixed graph cannot do; make "
                f"forward() leave the {kind} alone when self.training is False"
            )
        if node not in returned and not _saves_memory(program, spec.target, node):
            raise CaptureError(
                f"{model} writes to {what}{at}, which a fixed graph cannot do; return the new "
                "value, and let the caller pass it on"
            )
        notes.append(
            f"forward() writes to {what}{at}; the graph leaves the caller's tensor as it is and "
            "goes on with the new value"
        )
    return tuple(notes)


def _saves_memory(program: ExportedProgram, name: str, new: Node) -> bool:
    """Whether an input's new value is made of that input alone, and read by the graph."""
    fake, given = tensor(new), program.graph_signature.user_inputs
    made_of = reached(new, lambda node: node.all_input_nodes)
    return (
        fake is not None
        and fake.dtype.is_floating_point
        and any(user.op != "output" for user in new.users)
        and all(node.name == name for node in made_of if node.name in given)
    )


def refuse_random(graph_module: GraphModule, model: str) -> None:
    """Raise CaptureError where the graph, or a branch of it, draws random numbers."""
    for node in all_nodes(graph_module):
        if is_random(node):
            raise CaptureError(
                f"{model} draws random numbers in eval mode ({op_name(node)} at "
                f"{source_line(node) or node.name}), so its results cannot be verified; "
                "call eval() before exporting, or remove the operator"
            )


def unlift(program: ExportedProgram, nesting: TreeSpec | None = None) -> GraphModule:
    """The program as a graph module whose constants are read by `get_attr` nodes.

    The tracer's assertions and copies back into the caller's inputs are left out (the graph is a
    pure function), batch norms become one operator with one result, and views become reshapes,
    which mean the same whatever the strides of their input are. Its results are nested as
    `nesting` says, where the program's own are not the model's.
    """
    graph_module = program.module(check_guards=False)
    if nesting is not None:
        codegen: Any = graph_module.graph._codegen
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=nesting)
    for method in ("train", "eval"):  # the exporter disables both, but they are harmless here
        vars(graph_module).pop(method, None)
    for node in reversed(graph_module.graph.nodes):
        if is_call(node, aten.copy_):
            node.replace_all_uses_with(node.args[1])
        is_unused = node.op == "get_attr" and not node.users
        if is_unused or is_call(node, aten._assert_tensor_metadata, aten.copy_):
            graph_module.graph.erase_node(node)
    for node in list(graph_module.graph.nodes):
        if is_constant(node):
            node.meta["val"] = node.meta["val"].detach()
        elif is_call(node, *_BATCH_NORMS):
            _use_batch_norm(node)
        elif is_call(node, aten.view, aten._unsafe_view) and node.target != aten.view.dtype:
            node.target = aten.reshape.default
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def find_dead_code(traced: Graph, functional: Graph) -> PassReport:
    """The operators of `traced` that no output needs, a connected branch each.

    An in-place operator can matter without being an ancestor of the output, so a node is dead only
    if the functional graph holds nothing made from it either.
    """
    kept: set[Node | str] = set()
    # A parameter is recorded as made from its first reader, which may be dead.
    made = (node for node in functional.nodes if node.op == "call_function")
    pending = [origin for node in made for origin in node.meta.get("from_node") or ()]
    while pending:
        origin = pending.pop()
        kept.add(origin.name)
        pending.extend(origin.from_node)
    for node in reversed(traced.nodes):
        if node.op == "output" or {node, node.name} & kept:
            kept.update(node.all_input_nodes)
    branch_of: dict[Node, list[Node]] = {}
    for node in traced.nodes:
        if not is_call(node) or {node, node.name} & kept:
            continue
        read = [branch_of[item] for item in node.all_input_nodes if item in branch_of]
        joined = max(read, key=len, default=[])
        for branch in read:  # the smaller ones go over into the largest
            if branch is not joined and branch_of[branch[0]] is branch:
                joined += branch
                branch_of |= dict.fromkeys(branch, joined)
        joined.append(node)
        branch_of[node] = joined
    found = {id(branch): branch for branch in branch_of.values()}.values()
    branches = sorted((sorted(branch) for branch in found), key=lambda branch: branch[-1])
    rewrites = []
    for branch in branches:
        at, names = branch[-1], tuple(node.name for node in branch)
        what = f"{len(branch)} operators reach no output"
        rewrites.append(Rewrite(at.name, module_path(at), what, names))
    return PassReport("remove-unused", rewrites=tuple(rewrites))


def _use_batch_norm(node: Node) -> None:
    bound = {"running_mean": None, "running_var": None, "training": False, **arguments(node)}
    tensors = ("input", "weight", "bias", "running_mean", "running_var")
    args = (*(bound[name] for name in (*tensors, "training", "momentum", "eps")), False)
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(aten.batch_norm.default, args, name="batch_norm")
    norm.meta = {**node.meta, "val": node.meta["val"][0]}
    for item in list(node.users):
        if item.target is operator.getitem and item.args[1] == 0:
            item.replace_all_uses_with(norm)
        node.graph.erase_node(item)
    node.graph.erase_node(node)
