"""Capture: model + example inputs → functional ATen `torch.fx` graph in eval mode.

The only place that traces. `torch.export` captures the program, its decomposition pass makes it
functional (`relu_` and `add_` would otherwise change values that a shortcut still reads), and
parameters and buffers become constants that `get_attr` nodes read.
"""

import copy
import inspect
import logging
import operator
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from passfx.errors import CaptureError
from passfx.graph.editor import Rewrite
from passfx.graph.query import (
    arguments,
    is_call,
    is_constant,
    is_random,
    module_path,
    op_name,
    source_line,
    tensor,
)

aten = torch.ops.aten

_NOISY_LOGGERS = (
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
    "torch.utils.cpp_extension",
    "onnx_ir",
)


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Attributes:
        graph_module: the functional graph; called like the original model.
        program: the exported program it was made from; its signature and range constraints are
            those of every graph that is rewritten from it.
        args, kwargs: the example inputs, as the model takes them.
        input_names, output_names: a name for each flat tensor input and output.
        dim_names: the tracer's symbol of each dynamic size → the name that the user gave it.
        dead_code: the branches of the model that reach no output; making the graph functional
            drops them, so no pass gets to see them.
    """

    graph_module: GraphModule
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dim_names: dict[str, str]
    dead_code: tuple[Rewrite, ...]

    @property
    def flat_inputs(self) -> list[Any]:
        """The example inputs in the order of the graph's placeholders."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def placeholders(self) -> list[Node]:
        """The graph's inputs, tensors and others, in the order of `flat_inputs`."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]

    @property
    def results(self) -> list[Any]:
        """What the graph returns, flat: nodes, and plain values such as None."""
        results = self.graph_module.graph.output_node().args[0]
        assert isinstance(results, list | tuple)
        return list(results)

    def dim_name(self, size: str) -> str:
        """A dynamic size ("s77", "s77//2") with its symbols replaced by the names they have."""
        return re.sub(r"\w+", lambda match: self.dim_names.get(match[0], match[0]), size)


def capture(
    model: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """Capture a model in eval mode; the model itself is left exactly as it was.

    Args:
        model: a module, a symbolically traced `GraphModule`, or an `ExportedProgram`.
        args, kwargs, dynamic_shapes: as `torch.export.export` takes them; for an
            `ExportedProgram` they may be left out.

    Raises:
        CaptureError: the model cannot be traced, is kept in training mode, or changes its own
            buffers in eval mode; the message names the line of the user's code where one is known.
    """
    dims: _Dims = []
    inputs = tuple(args), dict(kwargs or {})
    if isinstance(model, ExportedProgram):
        program = model
        if inputs == ((), {}):
            if model.example_inputs is None:
                raise CaptureError("the exported program has no example inputs; pass them as args")
            inputs = model.example_inputs
    else:
        if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
            dynamic_shapes = dynamic_shapes.dynamic_shapes(model, *inputs)
        inputs = _widen_dynamic(model, *_distinct(model, *inputs), dynamic_shapes, dims)
        program = _export(model, *inputs, dynamic_shapes)
    traced = program
    with quiet():
        program = _functionalize(program, type(model).__name__)
        _refuse_mutation(program, type(model).__name__)
        graph_module = _unlift(program)
    _refuse_random(graph_module, type(model).__name__)
    return Captured(
        graph_module,
        program,
        *inputs,
        input_names := _input_names(graph_module),
        _output_names(graph_module, input_names),
        _dim_names(graph_module, pytree.tree_leaves(inputs), dims),
        _dead_code(traced.graph, program.graph),
    )


def _distinct(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs as different tensors, keywords in the order of `forward`.

    The tracer takes a tensor that is given twice for one input, and a graph takes by place what it
    was given by keyword.
    """
    seen: set[int] = set()

    def once(item: Any) -> Any:
        repeated = isinstance(item, torch.Tensor) and id(item) in seen
        seen.add(id(item))
        return item.clone() if repeated else item

    parameters = [name for name in inspect.signature(model.forward).parameters if name in kwargs]
    ordered = {name: kwargs[name] for name in (*parameters, *kwargs)}
    distinct: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(once, (args, ordered))
    return distinct


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    hooks = torch.nn.modules.module._global_buffer_registration_hooks
    registered = dict(hooks)
    try:
        # On a failure the tracer prints what it has traced so far.
        with _eval_mode(model), quiet(), torch.no_grad(), redirect_stderr(StringIO()):
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        hooks.clear()  # torch 2.11 leaves a hook behind that breaks the model's own buffers
        hooks.update(registered)
        raise CaptureError(_explain(error, model, args, kwargs)) from error


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Every submodule's flag set to eval and restored; the model's own `train()` is not run."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """The tracer and the exporter warn about their own internals, which no user can mend."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _functionalize(program: ExportedProgram, model: str) -> ExportedProgram:
    try:
        functional: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CaptureError(f"{model} cannot be made functional: {reason}") from error
    return functional


def _explain(
    error: Exception, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """One sentence: what failed, at which line of the user's code, on which inputs."""
    name = type(model).__name__
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = f"{type(error).__name__}: {reason}"
    at = f" at {_user_line(error)}" if _user_line(error) else ""
    try:
        with _eval_mode(model), torch.no_grad():
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            torch.func.functional_call(model, buffers, *copy.deepcopy((args, kwargs)))
    except Exception:
        shapes = [
            f"{str(item.dtype).removeprefix('torch.')} {'x'.join(map(str, item.shape)) or 'scalar'}"
            for item in pytree.tree_leaves((args, kwargs))
            if isinstance(item, torch.Tensor)
        ]
        return f"{name} itself fails on inputs of {', '.join(shapes)}{at}: {reason}"
    advice = ""
    if "data-dependent" in reason:
        advice = "; its flow depends on the value of a tensor: use torch.where or torch.cond there"
    return f"{name} cannot be captured{at}: {reason}{advice}"


def _user_line(error: Exception) -> str | None:
    """The innermost frame below the tracer that belongs neither to torch nor to passfx."""
    standard = Path(sysconfig.get_path("stdlib"))
    tracer = {Path(torch.__file__).parent, Path(__file__).parent}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        folders = set(Path(frame.filename).parents)
        names = {folder.name for folder in folders}
        library = standard in folders and not names & {"site-packages", "dist-packages"}
        if not (library or tracer & folders or "sympy" in names or frame.filename[0] == "<"):
            return f"{frame.filename}:{frame.lineno} ({frame.line})"
    return None


_Dims = list[tuple[torch.Tensor, int, Any]]


def _widen_dynamic(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    found: _Dims,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Expand every dynamic dimension of size 1 to 2, because the tracer specialises 0 and 1.

    Every dynamic dimension is added to `found` with the tensor that it belongs to.
    """
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        name = type(model).__name__
        raise CaptureError(f"{name}.forward does not take these inputs: {error}") from error
    if not dynamic_shapes:
        return args, kwargs
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(bound.arguments, dynamic_shapes, strict=False))
    for name, item in bound.arguments.items():
        bound.arguments[name] = _widen(item, dynamic_shapes.get(name), found)
    by_name = {**bound.kwargs, **bound.arguments}
    return bound.args[: len(args)], {name: by_name[name] for name in kwargs}


def _widen(item: Any, dims: Any, found: _Dims) -> Any:
    if isinstance(item, torch.Tensor):
        named = dict(dims if isinstance(dims, Mapping) else enumerate(dims or ()))
        named = {
            axis: dim
            for axis, dim in named.items()
            if not (dim is None or isinstance(dim, int) or dim == Dim.STATIC)
        }
        for axis in named:
            if item.shape[axis] == 1:
                item = torch.cat([item, item], axis)
        found += [(item, axis, dim) for axis, dim in named.items()]
        return item
    children, spec = pytree.tree_flatten(item, is_leaf=lambda child: child is not item)
    if isinstance(item, Mapping) and isinstance(dims, Mapping):
        dims = [dims.get(key) for key in item]
    if not isinstance(dims, list | tuple) or len(dims) != len(children):
        return item  # where the two should agree, the tracer says how they do not
    return pytree.tree_unflatten(
        [_widen(*pair, found) for pair in zip(children, dims, strict=True)], spec
    )


def _dim_names(graph_module: GraphModule, inputs: list[Any], dims: _Dims) -> dict[str, str]:
    """A `Dim`'s own name; "batch" for an unnamed first axis, "NAME_AXIS" for another one."""
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    names: dict[str, str] = {}
    for node, given in zip(placeholders, inputs, strict=True):
        for item, axis, dim in dims:
            size = node.meta["val"].shape[axis] if item is given else None
            if isinstance(size, torch.SymInt) and str(size) not in names:
                unnamed = "batch" if axis == 0 else f"{node.name}_{axis}"
                name = dim.__name__ if isinstance(dim, Dim) else unnamed
                taken = name in names.values()
                names[str(size)] = f"{node.name}_{name}" if taken else name
    return names


def _refuse_mutation(program: ExportedProgram, model: str) -> None:
    for buffer in program.graph_signature.buffers_to_mutate.values():
        raise CaptureError(
            f"{model} changes its buffer {buffer!r} in eval mode, which a fixed graph cannot do; "
            "make forward() leave the buffer alone when self.training is False"
        )


def _refuse_random(graph_module: GraphModule, model: str) -> None:
    for node in graph_module.graph.nodes:
        if is_random(node):
            raise CaptureError(
                f"{model} draws random numbers in eval mode ({op_name(node)} at "
                f"{source_line(node) or node.name}), so its results cannot be verified; "
                "call eval() before exporting, or remove the operator"
            )


def _unlift(program: ExportedProgram) -> GraphModule:
    """The program as a graph module whose constants are read by `get_attr` nodes.

    The tracer's assertions and copies back into the caller's inputs are left out (the graph is a
    pure function), batch norms become one operator with one result, and views become reshapes,
    which mean the same whatever the strides of their input are.
    """
    graph_module = program.module(check_guards=False)
    for method in ("train", "eval"):  # the exporter disables both, but they are harmless here
        vars(graph_module).pop(method, None)
    for node in reversed(graph_module.graph.nodes):
        if is_call(node, aten.copy_):
            node.replace_all_uses_with(node.args[1])
        if is_call(node, aten._assert_tensor_metadata, aten.copy_) or (
            node.op == "get_attr" and not node.users
        ):
            graph_module.graph.erase_node(node)
    for node in list(graph_module.graph.nodes):
        if is_constant(node):
            node.meta["val"] = node.meta["val"].detach()
        elif is_call(
            node, aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit
        ):
            _use_batch_norm(node)
        elif is_call(node, aten.view, aten._unsafe_view) and node.target != aten.view.dtype:
            node.target = aten.reshape.default
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _dead_code(traced: Graph, functional: Graph) -> tuple[Rewrite, ...]:
    """The operators of `traced` that no output needs, a connected branch each.

    An in-place operator can matter without being an ancestor of the output, so a node is dead only
    if the functional graph holds nothing made from it either.
    """
    kept: set[Node | str] = set()
    for node in functional.nodes:
        # A parameter is recorded as made from its first reader, which may be dead.
        made = node.op == "call_function"
        pending = list(node.meta.get("from_node") or ()) if made else []
        while pending:
            origin = pending.pop()
            kept.add(origin.name)
            pending.extend(origin.from_node)
    pending_nodes = [node for node in traced.nodes if node.op == "output" or node.name in kept]
    while pending_nodes:
        for read in pending_nodes.pop().all_input_nodes:
            if read not in kept:
                kept.add(read)
                pending_nodes.append(read)
    dead = [node for node in traced.nodes if is_call(node) and not {node, node.name} & kept]
    branches: list[list[Node]] = []
    for node in dead:
        joined = [branch for branch in branches if set(branch) & set(node.all_input_nodes)]
        branches = [branch for branch in branches if branch not in joined]
        branches.append([*(item for branch in joined for item in branch), node])
    return tuple(
        Rewrite(
            at=branch[-1].name,
            module=module_path(branch[-1]),
            what=f"{len(branch)} operators reach no output",
            removed=tuple(node.name for node in branch),
            added=(),
            error=None,
        )
        for branch in branches
    )


def _use_batch_norm(node: Node) -> None:
    bound = arguments(node)
    with node.graph.inserting_before(node):
        norm = node.graph.create_node(
            "call_function",
            aten.batch_norm.default,
            (
                *(bound[name] for name in ("input", "weight", "bias")),
                *(bound.get(name) for name in ("running_mean", "running_var")),
                bound.get("training", False),
                bound["momentum"],
                bound["eps"],
                False,
            ),
            name="batch_norm",
        )
    norm.meta = {**node.meta, "val": node.meta["val"][0]}
    for item in list(node.users):
        if item.target is operator.getitem and item.args[1] == 0:
            item.replace_all_uses_with(norm)
        node.graph.erase_node(item)
    node.graph.erase_node(node)


def _input_names(graph_module: GraphModule) -> tuple[str, ...]:
    return tuple(
        str(node.target)
        for node in graph_module.graph.nodes
        if node.op == "placeholder" and tensor(node) is not None
    )


def _output_names(graph_module: GraphModule, taken: Sequence[str]) -> tuple[str, ...]:
    """Names from the structure of the result: "output", "output_1", or the keys of a dict.

    A number is appended where an input or an earlier output has the name.
    """
    (results,) = graph_module.graph.output_node().args
    assert isinstance(results, list | tuple)
    spec = graph_module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(results), spec))
    names: list[str] = []
    for path, result in leaves:
        if tensor(result) is not None:
            keys = [_key_name(key) for key in path]
            named = keys and not keys[0].isdigit()
            wanted = name = "_".join(keys if named else ["output", *keys])
            number = 1
            while name in (*taken, *names):
                name, number = f"{wanted}_{number}", number + 1
            names.append(name)
    return tuple(names)


def _key_name(key: Any) -> str:
    """A dict's key, a sequence's index, or an attribute's name."""
    return next(str(getattr(key, kind)) for kind in ("key", "idx", "name") if hasattr(key, kind))
