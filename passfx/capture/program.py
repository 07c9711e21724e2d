"""Capture: model + example inputs → functional ATen `torch.fx` graph in eval mode.

`torch.export` captures the program, its decomposition pass makes it functional (`relu_` and `add_`
would otherwise change values that a shortcut still reads), and parameters and buffers become
constants that `get_attr` nodes read.
"""

import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passfx.capture.dynamic import Dims, Inputs, dim_names, widen_dynamic
from passfx.capture.functional import (
    find_dead_code,
    functionalize,
    refuse_mutation,
    refuse_random,
    unlift,
)
from passfx.capture.names import input_names, output_names
from passfx.capture.rules import SizeRule
from passfx.capture.trial import find_rules
from passfx.errors import CaptureError, named_line, quiet
from passfx.graph.query import dtype_name, tensors
from passfx.record import PassReport


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
        dead_code: the branches of the model that reach no output, as the pass `remove-unused` would
            report them; making the graph functional drops them, so no pass gets to see them.
        rules: what must hold for the sizes of the inputs.
    """

    graph_module: GraphModule
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dim_names: dict[str, str]
    dead_code: PassReport
    rules: tuple[SizeRule, ...] = ()

    @property
    def flat_inputs(self) -> list[Any]:
        """The example inputs in the order of the graph's placeholders."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def placeholders(self) -> list[Node]:
        """The graph's inputs, tensors and others, in the order of `flat_inputs`."""
        return list(self.graph_module.graph.find_nodes(op="placeholder"))

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
    dims: Dims = []
    inputs: Inputs = tuple(args), dict(kwargs or {})
    if isinstance(model, ExportedProgram):
        program = model
        if inputs == ((), {}):
            if model.example_inputs is None:
                raise CaptureError("the exported program has no example inputs; pass them as args")
            inputs = model.example_inputs
    else:
        if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
            dynamic_shapes = dynamic_shapes.dynamic_shapes(model, *inputs)
        inputs = widen_dynamic(model, _distinct(model, *inputs), dynamic_shapes, dims)
        program = _export(model, inputs, dynamic_shapes)
    name, traced = type(model).__name__, program.graph
    with quiet():
        program = functionalize(program, name)
        refuse_mutation(program, name)
        graph_module = unlift(program)
    refuse_random(graph_module, name)
    taken = input_names(graph_module)
    return Captured(
        graph_module,
        program,
        *inputs,
        taken,
        output_names(graph_module, taken),
        dim_names(graph_module, pytree.tree_leaves(inputs), dims),
        find_dead_code(traced, program.graph),
        find_rules(graph_module, program, model, inputs, dims),
    )


def _distinct(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
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
    return cast(Inputs, pytree.tree_map(once, (args, ordered)))


def _export(model: torch.nn.Module, inputs: Inputs, dynamic_shapes: Any) -> ExportedProgram:
    hooks = torch.nn.modules.module._global_buffer_registration_hooks
    registered = dict(hooks)
    try:
        # On a failure the tracer prints what it has traced so far.
        with _eval_mode(model), quiet(), torch.no_grad(), redirect_stderr(StringIO()):
            return torch.export.export(model, *inputs, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        hooks.clear()  # torch 2.11 leaves a hook behind that breaks the model's own buffers
        hooks.update(registered)
        raise CaptureError(_explain(error, model, inputs)) from error


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


def _explain(error: Exception, model: torch.nn.Module, inputs: Inputs) -> str:
    """One sentence: what failed, at which line of the user's code, on which inputs."""
    name, reason, line = type(model).__name__, named_line(error), _user_line(error)
    at = f" at {line}" if line else ""
    try:
        with _eval_mode(model), torch.no_grad():
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            torch.func.functional_call(model, buffers, *copy.deepcopy(inputs))
    except Exception:
        shapes = [
            f"{dtype_name(item.dtype)} {'x'.join(map(str, item.shape)) or 'scalar'}"
            for item in tensors(pytree.tree_leaves(inputs))
        ]
        return f"{name} itself fails on inputs of {', '.join(shapes)}{at}: {reason}"
    advice = ""
    if "data-dependent" in reason:
        advice = "; its flow depends on the value of a tensor: use torch.where or torch.cond there"
    return f"{name} cannot be captured{at}: {reason}{advice}"


def _user_line(error: Exception) -> str | None:
    """The innermost frame below the tracer that belongs neither to torch nor to passfx."""
    standard = Path(sysconfig.get_path("stdlib"))
    tracer = {Path(torch.__file__).parent, Path(__file__).parents[1]}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        folders = set(Path(frame.filename).parents)
        names = {folder.name for folder in folders}
        library = standard in folders and not names & {"site-packages", "dist-packages"}
        if not (library or tracer & folders or "sympy" in names or frame.filename[0] == "<"):
            return f"{frame.filename}:{frame.lineno} ({frame.line})"
    return None
