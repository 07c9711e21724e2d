"""A source or a model, as the user names it, with example inputs."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from passfx.errors import SourceError
from passfx.source.call import call
from passfx.source.declared import shapes_of_file
from passfx.source.factory import factory_model, is_factory
from passfx.source.inputs import (
    as_inputs,
    asked_shapes,
    bound_inputs,
    drawing_notes,
    dynamic_shapes,
    given_inputs,
    parse_input_shape,
    random_inputs,
)
from passfx.source.program import load_program
from passfx.source.spec import Arguments, Loaded, Source, SourceSpec
from passfx.source.suggest import no_source
from passfx.source.timm import timm_model
from passfx.source.torchvision import torchvision_model
from passfx.source.weights import load_weights
from passfx.source.zoo import start_fresh

# Which sources are of a form, and what loads them.
_FORMS: tuple[tuple[Callable[[str], bool], Callable[[str, Arguments], Loaded]], ...] = (
    (lambda text: text.endswith(".pt2"), load_program),
    (lambda text: text.startswith("timm:"), timm_model),
    (lambda text: text.startswith("torchvision:"), torchvision_model),
    (is_factory, factory_model),
)
_ZOOS = (timm_model, torchvision_model)


def load_source(spec: SourceSpec) -> Source:
    """The model that a user names, and example inputs for it.

    Random weights and inputs are drawn from `spec.seed`. Inputs are those given, else those of
    `spec.input_shapes`, else the file's `example_inputs()`, else of the size that timm or
    torchvision declares. A model of these two for which no weights are given gets random norms,
    biases and layer scales (fresh.py), which do not depend on the inputs if it declares a size.

    Raises:
        SourceError: any part of this fails; the message says which and what to do.
    """
    if not isinstance(spec.source, str):
        if spec.arguments or spec.weights or spec.weights_key or spec.input_shapes:
            raise SourceError("arguments, weights and input_shapes are for a source, not a model")
        model = _unwrapped(_checked(spec.source))
        source = Source(type(model).__name__, model, *given_inputs(model, spec.args, spec.kwargs))
    elif spec.gives_inputs and spec.input_shapes:
        raise SourceError("input_shapes stands instead of args and kwargs")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            source = _load(spec, spec.source)
    if not (spec.dynamic_batch or spec.dynamic_axes):
        return replace(source, dynamic_shapes=spec.dynamic_shapes)
    if spec.dynamic_shapes:
        raise SourceError("dynamic_shapes stands instead of dynamic_batch and dynamic_axes")
    return replace(source, dynamic_shapes=dynamic_shapes(source, spec))


def _checked(given: Any) -> torch.nn.Module | ExportedProgram:
    """A model that was given itself, if it is one."""
    if isinstance(given, torch.nn.Module | ExportedProgram):
        return given
    what = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
    advice = (
        "give an instance of torch.nn.Module, an ExportedProgram, or a source as text "
        "(timm:resnet18)"
    )
    if isinstance(given, torch.jit.ScriptFunction):
        advice = "give a torch.nn.Module that calls the function from which it was scripted"
    elif isinstance(given, Mapping):
        advice = "load it into one (load_state_dict), or give --weights beside a source"
    elif callable(given) and not isinstance(given, type):
        advice = "give an instance of torch.nn.Module whose forward() calls it"
    raise SourceError(f"{what} is no model: {advice}")


def _unwrapped(model: Any) -> Any:
    """The module inside of what runs it compiled, or on several devices, and changes no result."""
    inner = _wrapped(model)
    if inner is None or model._forward_hooks or model._forward_pre_hooks:  # hooks may change it
        return model
    return _unwrapped(inner)


def _wrapped(model: Any) -> Any:
    if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return model.module
    dynamo: Any = sys.modules.get("torch._dynamo")  # imported by whoever compiled a module
    is_compiled = dynamo is not None and isinstance(model, dynamo.OptimizedModule)
    return model._orig_mod if is_compiled else None


def _load(spec: SourceSpec, text: str) -> Source:
    shapes = [parse_input_shape(shape) for shape in spec.input_shapes]
    load = next((load for matches, load in _FORMS if matches(text)), None)
    if load is None:
        raise no_source(text)
    if load is load_program and spec.trust_pickle:
        load = partial(load_program, trust_pickle=True)
    model, declared = load(text, spec.arguments or {})
    if isinstance(model, ExportedProgram) and (spec.arguments or spec.weights):
        raise SourceError(f"{text} is a finished program: it takes no --arg and no --weights")
    notes: tuple[str, ...] = ()
    if spec.weights_file is not None:
        key, path = spec.weights_key, spec.weights_file
        notes = load_weights(model, path, key, strict=spec.strict, trust_pickle=spec.trust_pickle)
    elif spec.weights_key is not None:
        raise SourceError("--weights-key (weights_key) is for a file that --weights names")
    inputs = given_inputs(model, spec.args, spec.kwargs) if spec.gives_inputs else None
    is_zoo, given = load in _ZOOS, None
    if declared is not None and (is_zoo or not (shapes or inputs)):
        what = f"example_inputs() of {text}"
        given = as_inputs(call(declared, what) if callable(declared) else declared)
    if not (shapes or inputs) and spec.file_inputs and not isinstance(model, ExportedProgram):
        shapes = shapes_of_file(spec.file_inputs, given)
    if is_zoo and spec.weights is None and (given or inputs or shapes):
        some_inputs = given or inputs or random_inputs(model, shapes, spec.seed)
        notes = start_fresh(model, spec, some_inputs)
    if inputs is not None:
        return Source(text, model, *inputs, notes=notes)
    if shapes:
        notes += drawing_notes(model, shapes)
        source = Source(text, model, *random_inputs(model, shapes, spec.seed), notes=notes)
        if not isinstance(model, ExportedProgram):
            bound_inputs(source)
        return source
    if isinstance(model, ExportedProgram):
        return Source(text, model)
    if given is None:
        hint = ", or define example_inputs() beside the factory" if load is factory_model else ""
        raise SourceError(f"{text} declares no example inputs: give {asked_shapes(model)}{hint}")
    return Source(text, model, *given, notes=notes)
