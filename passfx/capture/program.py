"""Capture: model + example inputs → functional ATen `torch.fx` graph in eval mode.

`torch.export` captures the program, its decomposition pass makes it functional (`relu_` and `add_`
would otherwise change values that a shortcut still reads), and parameters and buffers become
constants that `get_attr` nodes read.
"""

import inspect
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

import torch
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passfx.capture.aliases import program_aliases
from passfx.capture.calls import refuse_memory
from passfx.capture.check import check_capturable, program_inputs
from passfx.capture.dynamic import Dims, Inputs, dim_names, widen_dynamic
from passfx.capture.explain import Constants, check_call, explain, note_constants
from passfx.capture.functional import (
    find_dead_code,
    functionalize,
    refuse_constant_writes,
    refuse_random,
    refuse_writes,
    unlift,
)
from passfx.capture.names import input_names, output_names
from passfx.capture.rules import SizeRule
from passfx.capture.state import evaluating
from passfx.capture.trial import find_rules
from passfx.capture.weights import hold_tensors
from passfx.errors import CaptureError, quiet
from passfx.graph.aliases import Aliases
from passfx.graph.results import is_foreign, take_apart
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
        aliases: which results of the model share memory.
        notes: sentences about what the graph leaves out of what the model does to its inputs.
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
    aliases: Aliases
    notes: tuple[str, ...] = ()
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
        CaptureError: the model cannot be traced, is kept in training mode, or changes in eval mode
            what outlives a call: its buffers, parameters or attributes, or an input; the message
            names the line of the user's code where one is known.
    """
    dims: Dims = []
    changed: list[str] = []
    nesting: pytree.TreeSpec | None = None
    inputs: Inputs = tuple(args), dict(kwargs or {})
    check_capturable(model, inputs, dynamic_shapes)
    if isinstance(model, ExportedProgram):
        program, inputs = model, program_inputs(model, inputs)
    else:
        if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
            dynamic_shapes = dynamic_shapes.dynamic_shapes(model, *inputs)
        inputs = widen_dynamic(model, _traceable(model, *inputs), dynamic_shapes, dims)
        with quiet():  # also where the model is really called, and torch's hooks are mended
            program, changed, nesting = _export(model, inputs, dynamic_shapes)
    name, traced = type(model).__name__, program.graph
    shared = program_aliases(program)
    refuse_constant_writes(program, name)
    with quiet():
        program = functionalize(program, name)
        notes = refuse_writes(program, name)
        graph_module = unlift(program, nesting)
    hold_tensors(graph_module, copied=False)
    refuse_random(graph_module, name)
    if isinstance(model, torch.nn.Module):
        with quiet():
            check_call(model, inputs)
            if changed:
                refuse_memory(model, inputs, changed)
    taken = input_names(graph_module)
    return Captured(
        graph_module,
        program,
        *inputs,
        taken,
        output_names(graph_module, taken),
        dim_names(graph_module, pytree.tree_leaves(inputs), dims),
        find_dead_code(traced, program.graph),
        shared,
        notes,
        find_rules(graph_module, program, model, inputs, dims),
    )


def _traceable(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The inputs as different tensors of our own, keywords in the order of `forward`.

    The tracer leaves its marks on the tensors that it is given and takes a tensor that is given
    twice for one input; a graph takes by place what it was given by keyword.
    """
    seen: set[int] = set()

    def own(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        repeated = id(item) in seen
        seen.add(id(item))
        copied = item.detach().clone() if repeated else item.detach()
        return copied.requires_grad_(item.requires_grad)

    parameters = [name for name in inspect.signature(model.forward).parameters if name in kwargs]
    ordered = {name: kwargs[name] for name in (*parameters, *kwargs)}
    return cast(Inputs, pytree.tree_map(own, (args, ordered)))


def _export(
    model: torch.nn.Module, inputs: Inputs, dynamic_shapes: Any
) -> tuple[ExportedProgram, list[str], pytree.TreeSpec | None]:
    """The traced program, what tracing changed in the model, all of which is put back, and how its
    results are nested where pytree does not know it."""
    hooks = torch.nn.modules.module._global_buffer_registration_hooks
    registered = dict(hooks)
    changed: list[str] = []
    nested: list[pytree.TreeSpec] = []
    constants: Constants = {}

    def prepare(_: Any, args: Any, kwargs: Any) -> None:
        mode = detect_fake_mode((args, kwargs))
        if mode is not None and mode.shape_env is not None:
            note_constants(mode.shape_env, constants)

    def observe(_: Any, args: Any, result: Any) -> tuple[Any, ...] | None:
        changed.extend(state.changed())
        leaves, spec = take_apart(result)
        if not is_foreign(spec):
            return None
        nested.append(spec)
        return tuple(leaves)

    try:
        with _mute(), evaluating(model) as state:
            # The tracer puts back a part of it by itself, so that it is seen from inside alone.
            model.register_forward_pre_hook(prepare, with_kwargs=True)
            model.register_forward_hook(observe)
            program = torch.export.export(model, *inputs, dynamic_shapes=dynamic_shapes)
            changed += state.written()
        return program, changed, nested[-1] if nested else None
    except Exception as error:
        hooks.clear()  # torch 2.11 leaves a hook behind that breaks the model's own buffers
        hooks.update(registered)
        if isinstance(error, CaptureError):  # of ours, about the results
            raise CaptureError(f"{type(model).__name__} cannot be captured: {error}") from error
        raise CaptureError(explain(error, model, inputs, constants)) from error


@dataclass(frozen=True)
class _Muted:
    """A stream that takes nothing from the thread that made it."""

    stream: TextIO
    thread: int = field(default_factory=threading.get_ident)

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _mute() -> redirect_stderr[Any]:
    """The tracer prints what it has traced so far where it fails."""
    return redirect_stderr(cast(TextIO, _Muted(sys.stderr)))
