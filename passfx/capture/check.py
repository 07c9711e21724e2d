"""What cannot be captured, said before the tracer stumbles over it."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from passfx.errors import CaptureError, first_line
from passfx.graph.query import dtype_name

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def check_capturable(
    model: torch.nn.Module | ExportedProgram, inputs: Inputs, dynamic_shapes: Any = None
) -> None:
    """Refuse a model, inputs and dynamic sizes of which torch's tracer makes no sense.

    Raises:
        CaptureError: TorchScript; a tensor without values, sparse, quantized or nested; dynamic
            sizes that are none.
    """
    name = type(model).__name__
    if not isinstance(model, ExportedProgram):
        # The tracer goes through a traced part as it went through Python, but not through others.
        scripted = (isinstance(part, RecursiveScriptModule) for part in model.modules())
        if isinstance(model, torch.jit.ScriptModule) or any(scripted):
            raise CaptureError(
                f"{name} is TorchScript or holds some, which torch.export does not capture; give "
                "the module that was scripted or traced, or what torch.export makes of it"
            )
    for what, item in (*_own_tensors(model), *_given(inputs)):
        if problem := _problem(item):
            raise CaptureError(f"{what} of {name} {problem}")
    if isinstance(model, ExportedProgram):
        if dynamic_shapes is not None:
            raise CaptureError(
                "dynamic_shapes are for a module; those of an exported program were fixed when it "
                "was made"
            )
    elif dynamic_shapes is not None and not hasattr(dynamic_shapes, "dynamic_shapes"):
        _check_dynamic(model, inputs, dynamic_shapes)


def _own_tensors(model: torch.nn.Module | ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((f"the parameter {name}", item) for name, item in model.named_parameters())
    yield from ((f"the buffer {name}", item) for name, item in model.named_buffers())


def _given(inputs: Inputs) -> Iterator[tuple[str, torch.Tensor]]:
    for given in inputs:
        try:
            leaves = pytree.tree_leaves_with_path(given)
        except ValueError as error:  # of a class that was registered without keys
            raise CaptureError(
                f"an input cannot be taken apart: {first_line(error)} Or give its tensors in a dict"
            ) from error
        for path, item in leaves:
            if isinstance(item, torch.Tensor):
                yield f"the input {pytree.keystr(path)}", item
            elif type(item).__module__ == "numpy":
                raise CaptureError(
                    f"the input {pytree.keystr(path)} is a numpy.{type(item).__name__}; give "
                    "torch.as_tensor of it"
                )
            elif dataclasses.is_dataclass(item) and not isinstance(item, type):
                kind = type(item).__name__
                raise CaptureError(
                    f"the input {pytree.keystr(path)} is a dataclass that torch.export does not "
                    f"know; call torch.export.register_dataclass({kind}) before"
                )


def _problem(item: torch.Tensor) -> str | None:
    """What of a tensor no operator of a captured graph could take."""
    if is_lazy(item):
        return "has no weights yet, which the first call makes; call the model once before"
    if item.is_nested:
        return "is a nested tensor, which ONNX does not have; pad it to one shape"
    if item.is_quantized:
        return "is quantized; dequantize it"
    if item.layout != torch.strided:
        layout = str(item.layout).removeprefix("torch.")
        return f"is sparse ({layout}), which ONNX does not have; give it as item.to_dense()"
    if item.is_meta:
        return (
            "is on the meta device and has no values; make it on the CPU, or give a module some "
            "with to_empty(device='cpu') and load_state_dict"
        )
    return None


def _check_dynamic(model: torch.nn.Module, inputs: Inputs, given: Any) -> None:
    """Refuse what is not of `torch.export`'s form; the tracer says where it fits no input."""
    if not isinstance(given, Mapping | list | tuple):
        raise CaptureError(
            f"dynamic_shapes is {given!r}, not a mapping of the parameters of forward, nor a "
            "sequence in their order"
        )
    try:
        bound = inspect.signature(model.forward).bind(*inputs[0], **inputs[1]).arguments
    except TypeError:
        return  # what follows says how the inputs do not fit
    named = given if isinstance(given, Mapping) else dict(zip(bound, given, strict=False))
    for name, item in bound.items():
        _check_dims(name, item, named.get(name))


def _check_dims(name: str, item: Any, dims: Any) -> None:
    if dims is None:
        return
    if not isinstance(dims, Mapping | list | tuple):
        raise CaptureError(
            f"the dynamic sizes of {name} are {dims!r}; give an axis → Dim for each that varies"
        )
    if isinstance(item, torch.Tensor):
        for axis in dims if isinstance(dims, Mapping) else range(len(dims)):
            if not isinstance(axis, int) or not -item.ndim <= axis < item.ndim:
                raise CaptureError(
                    f"the input {name} has {item.ndim} axes, so none of them is {axis!r} "
                    "(dynamic_shapes)"
                )
        return
    if isinstance(item, Mapping) and isinstance(dims, Mapping):
        for key, inner in item.items():
            _check_dims(f"{name}[{key!r}]", inner, dims.get(key))
    elif isinstance(item, list | tuple) and isinstance(dims, list | tuple):
        for index, (inner, inner_dims) in enumerate(zip(item, dims, strict=False)):
            _check_dims(f"{name}[{index}]", inner, inner_dims)


def program_inputs(program: ExportedProgram, inputs: Inputs) -> Inputs:
    """The inputs of an exported program, in its order; those that it was made with if none.

    Raises:
        CaptureError: it has none, or does not take these: their number, nesting, dtype or size.
    """
    if inputs == ((), {}):
        if program.example_inputs is None:
            raise CaptureError("the exported program has no example inputs; pass them as args")
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    args, kwargs = inputs
    try:
        if hasattr(program, "_graph_module_flat_inputs"):
            program._graph_module_flat_inputs(args, kwargs)
        else:
            program.module()(*args, **kwargs)
    except Exception as error:
        raise CaptureError(
            f"the exported program does not take these inputs: {first_line(error)}"
        ) from error
    spec = program.call_spec.in_spec
    if spec is not None and kwargs:
        kwargs = {name: kwargs[name] for name in spec.child(1).context}
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    taken = [nodes[str(name)].meta["val"] for name in program.graph_signature.user_inputs]
    for given, wanted in zip(pytree.tree_leaves((args, kwargs)), taken, strict=True):
        if isinstance(wanted, torch.Tensor) and given.dtype != wanted.dtype:
            ours, theirs = dtype_name(given.dtype), dtype_name(wanted.dtype)
            raise CaptureError(f"the exported program takes {theirs} where {ours} is given")
    return args, kwargs
