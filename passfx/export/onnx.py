"""A rewritten graph as an ONNX file, through torch's own exporter."""

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import NameFixPass
from torch.export import ExportedProgram
from torch.export import graph_signature as signature
from torch.fx import Graph, GraphModule, Node

from passfx.capture.program import Captured
from passfx.errors import ExportError, named_line, quiet
from passfx.export.settings import ExportSettings
from passfx.export.sizes import simplify_sizes
from passfx.export.translations import translations
from passfx.files import data_name, is_file, replacing
from passfx.graph.ops import aten
from passfx.graph.query import arguments, attribute, is_call, is_constant, tensor, tensors, value
from passfx.graph.shapes import ints
from passfx.record import OnnxReport
from passfx.version import __version__

_DEFAULT = ExportSettings()
_BFLOAT16_OPSET = 22  # the first whose Conv takes it
_INLINE_BYTES = 2 * 10**9 - 10**8  # a protobuf message holds 2 GB at most, graph included
_DATA = "data"  # the weights beside a file, until their digest is known


def to_exported_program(graph_module: GraphModule, captured: Captured) -> ExportedProgram:
    """The rewritten graph as an exported program, with the inputs and ranges it was captured with.

    Constants, which the graph reads by `get_attr`, become inputs of kind buffer, as the format
    wants; the branches of conditions and loops go along, and node metadata (module scopes, source
    lines) is kept.
    """
    root, graph, copies = torch.nn.Module(), Graph(), dict[Node, Node]()
    inputs: list[signature.InputSpec] = []
    by_target: dict[str, Node] = {}
    nodes = list(graph_module.graph.nodes)
    for node in filter(is_constant, nodes):
        target = str(node.target)
        if target not in by_target:
            by_target[target] = placeholder = graph.placeholder(f"c_{target.replace('.', '_')}")
            placeholder.meta = {"val": node.meta["val"]}
            kind, argument = signature.InputKind.BUFFER, _argument(placeholder)
            inputs.append(signature.InputSpec(kind, argument, target, persistent=True))
        copies[node] = by_target[target]
    for node in nodes:
        if node.op == "output":
            # A file returns tensors; None keeps the place of whatever else the model does.
            results: Any = node.args[0]
            graph.output([copies[item] if tensor(item) is not None else None for item in results])
        elif _is_part(node):
            parts, index = node.args
            bound = arguments(parts)
            taken = copies[bound["self"]], bound["dim"], index
            copies[node] = graph.call_function(aten.select.int, taken)
            copies[node].meta = dict(node.meta)
        elif node not in copies and not is_call(node, aten.unbind):
            read = _once(graph, copies) if _has_branches(node) else copies.__getitem__
            copies[node] = graph.node_copy(node, read)
            _use_mean(copies[node])
            if node.op == "placeholder":
                kind, argument = signature.InputKind.USER_INPUT, _argument(copies[node])
                inputs.append(signature.InputSpec(kind, argument, None))
            elif node.op == "get_attr":
                root.add_module(str(node.target), attribute(graph_module, str(node.target)))
    outputs = [
        signature.OutputSpec(signature.OutputKind.USER_OUTPUT, _argument(item), None)
        for item in graph.output_node().args[0]  # type: ignore[union-attr]
    ]
    program = captured.program
    return ExportedProgram(
        root=root,
        graph=graph,
        graph_signature=signature.ExportGraphSignature(inputs, outputs),
        state_dict={target: attribute(graph_module, target).detach() for target in by_target},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph[:1],
        example_inputs=(captured.args, captured.kwargs),
    )


def _is_part(node: Node) -> bool:
    """Whether a node is one position of an axis, of all that `unbind` gives.

    The exporter writes that as a split and a squeeze of every part; a gather each is one less.
    """
    return node.target is operator.getitem and is_call(node.args[0], aten.unbind)


def _use_mean(node: Node) -> None:
    """The average of a whole image as a mean: torch's own translation keeps strides too.

    For an image whose channels lie last that is `as_strided`, written with an index per element.
    """
    if is_call(node, aten.adaptive_avg_pool2d) and ints(node.args[1], 2) == (1, 1):
        node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)


def _has_branches(node: Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _once(graph: Graph, copies: dict[Node, Node]) -> Callable[[Node], Node]:
    """The copies that a condition or loop reads, which takes no tensor twice: one, and clones."""
    taken: set[Node] = set()

    def read(node: Node) -> Node:
        copy = copies[node]
        if copy in taken and tensor(node) is not None:
            copy = graph.call_function(aten.clone.default, (copy,))
            copy.meta = dict(node.meta)
        taken.add(copy)
        return copy

    return read


def _argument(item: Any) -> Any:
    if not isinstance(item, Node):
        return signature.ConstantArgument("", item)
    if tensor(item) is not None:
        return signature.TensorArgument(item.name)
    if isinstance(value(item), torch.SymInt):
        return signature.SymIntArgument(item.name)
    return signature.ConstantArgument(item.name, value(item))


def export_onnx(
    graph_module: GraphModule, captured: Captured, settings: ExportSettings = _DEFAULT
) -> ir.Model:
    """Translate a rewritten graph to ONNX, in memory.

    Args:
        settings: of which the opset counts, and the names of the inputs and outputs: one per flat
            tensor, by default those of the capture.

    Raises:
        ExportError: the exporter has no translation for an operator, or the names do not fit.
    """
    if not captured.output_names:
        raise ExportError("the model returns no tensor, so that a file would compute nothing")
    for kind, given, own in (
        ("input", settings.input_names, captured.input_names),
        ("output", settings.output_names, captured.output_names),
    ):
        if given is not None and len(given) != len(own):
            has = f"the model has {len(own)} {kind}(s) ({', '.join(own)})"
            raise ExportError(f"{has}, not {len(given)}")
    fakes = tensors(map(value, graph_module.graph.nodes))
    if settings.opset < _BFLOAT16_OPSET and torch.bfloat16 in {fake.dtype for fake in fakes}:
        raise ExportError(
            f"bfloat16 operators need opset {_BFLOAT16_OPSET} or later, not {settings.opset} "
            "(--opset)"
        )
    try:
        with quiet():
            program = torch.onnx.export(
                to_exported_program(graph_module, captured),
                dynamo=True,
                opset_version=settings.opset,
                input_names=list(settings.input_names or captured.input_names),
                output_names=list(settings.output_names or captured.output_names),
                optimize=False,
                custom_translation_table=translations(settings.opset),
                verbose=False,
            )
            assert program is not None
            NameFixPass()(program.model)  # the optimiser looks shapes up by name
            program.optimize()
    except Exception as error:
        cause: BaseException = error
        # The innermost one: the exporter's own message is mostly advice for its maintainers.
        while cause.__cause__ is not None:
            cause = cause.__cause__
        what = re.sub(r"<(\w+\.)*(\w+) object at 0x\w+>", r"\2", named_line(cause))
        reason = f"torch's ONNX exporter cannot write this model: {what}"
        raise ExportError(reason) from error
    model = program.model
    simplify_sizes(model)
    _name_dims(model, captured)
    model.producer_name, model.producer_version = "passfx", __version__
    model.metadata_props["passfx.version"] = __version__
    return model


@contextmanager
def staged(model: ir.Model, path: Path) -> Iterator[tuple[Path, OnnxReport]]:
    """Write the file beside its place; move it there if the block succeeds, else leave nothing.

    It is checked with full shape inference. Weights of more than 2 GB lie beside the file, under a
    name that carries their digest.

    Yields:
        The staged file, and the report of what will lie at `path`.

    Raises:
        ExportError: the written file does not pass `onnx.checker`, or `path` is no place for it.
    """
    stored = (item.const_value for item in model.graph.initializers.values())
    is_large = sum(item.nbytes for item in stored if item) > _INLINE_BYTES
    if is_large and path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise ExportError(
            f"the weights would lie beside {path.resolve()}, where they are not found through the "
            f"link {path}; give the name of the file itself"
        )
    with replacing(path) as written:
        ir.save(model, written, "protobuf", external_data=_DATA if is_large else None)
        if is_large:
            _name_data(written)
        try:
            onnx.checker.check_model(str(written), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the exported model is not valid ONNX: {error}") from error
        yield written, replace(summarize(written), path=str(path))


def _name_data(written: Path) -> None:
    """Rename the data beside a file by its digest."""
    data = written.with_name(_DATA)
    with data.open("rb") as file:
        name = data_name(written.name, hashlib.file_digest(file, "sha256").hexdigest())
    model = load_graph(written)
    for item in _stored_tensors(model.graph):
        for entry in item.external_data:
            entry.value = name if entry.key == "location" else entry.value
    data.rename(data.with_name(name))
    onnx.save(model, written, "protobuf")


def summarize(path: Path) -> OnnxReport:
    """The size, operators and opset of a file.

    Raises:
        ExportError: it is not an ONNX file.
    """
    model = load_graph(path)
    ops = dict(Counter(sorted(node.op_type for node in model.graph.node)).most_common())
    opsets = (item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    size = sum(file.stat().st_size for file in (path, *external_files(path)))
    return OnnxReport(str(path), size, len(model.graph.node), ops, next(opsets, None))


def load_graph(path: Path) -> onnx.ModelProto:
    """A file without the weights that lie beside it.

    Raises:
        ExportError: it is not an ONNX file.
    """
    try:
        model = onnx.load(path, "protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist") from error
    except DecodeError as error:
        raise ExportError(f"{path} is not an ONNX file") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    if not model.graph.output:
        raise ExportError(f"{path} is not an ONNX file: it has no outputs")
    return model


def external_files(path: Path) -> list[Path]:
    """The files that hold the weights of an ONNX file, in its folder or in folders of it.

    Raises:
        ExportError: it is not an ONNX file, one of them is missing, or lies elsewhere, which ONNX
            does not allow.
    """
    stored = (item.external_data for item in _stored_tensors(load_graph(path).graph))
    names = {entry.value for entries in stored for entry in entries if entry.key == "location"}
    for name in sorted(names):
        if not _is_inside(name):
            raise ExportError(
                f"{path} keeps its weights in {name!r}, but a model reads nothing outside of its "
                "folder; save it again with the weights beside it"
            )
    files = [path.parent / name for name in sorted(names)]
    for file in files:
        if not is_file(file):
            raise ExportError(f"{path} keeps its weights in {file}, which does not exist")
    return files


def _is_inside(name: str) -> bool:
    """Whether a name leads to a file in its folder or in folders of it, on any system."""
    ways = PurePosixPath(name), PureWindowsPath(name)
    return bool(ways[0].name) and not any(way.anchor or ".." in way.parts for way in ways)


def _stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors of a graph, of its attributes and of its subgraphs."""
    yield from graph.initializer
    for item in graph.sparse_initializer:
        yield from (item.values, item.indices)
    for node in graph.node:
        for found in node.attribute:
            yield from (found.t, *found.tensors)
            for inner in (found.g, *found.graphs):
                yield from _stored_tensors(inner)


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What a graph takes, without the weights that older files list among its inputs."""
    weights = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in weights]


def sizes(item: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    """A shape; a size that may vary is its name, or None where it has none."""
    return tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in item.type.tensor_type.shape.dim
    )


def _name_dims(model: ir.Model, captured: Captured) -> None:
    """Dynamic sizes by the names that the user gave them instead of the tracer's symbols.

    One that the exporter does not know stays without a name: equal names are equal sizes.
    """
    inner = (item for node in model.graph.all_nodes() for item in node.outputs)
    for item in (*model.graph.inputs, *model.graph.outputs, *inner):
        if item.shape is not None and not item.shape.is_static():
            item.shape = ir.Shape(
                captured.dim_name(str(size.value))
                if isinstance(size, ir.SymbolicDim) and size.value is not None
                else size
                for size in item.shape
            )
