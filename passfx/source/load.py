"""A source or a model, as the user names it, with example inputs."""

from collections.abc import Callable, Mapping, Sequence
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

    Random weights and inputs are drawn from `spec.seed`. Inputs are those of `spec.input_shapes`,
    else the file's `example_inputs()`, else of the size that timm or torchvision declares. A model
    of these two for which no weights are given gets random norms, biases and layer scales
    (fresh.py), which do not depend on `spec.input_shapes` if it declares a size.

    Raises:
        SourceError: any part of this fails; the message says which and what to do.
    """
    if not isinstance(spec.source, str):
        if spec.arguments or spec.weights or spec.weights_key or spec.input_shapes:
            raise SourceError("arguments, weights and input_shapes are for a source, not a model")
        args, kwargs = _given(spec)
        source = Source(type(spec.source).__name__, spec.source, args, kwargs)
    elif spec.args or spec.kwargs:
        raise SourceError(f"args and kwargs are for a model; {spec.source} takes input_shapes")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            source = _load(spec, spec.source)
    if not (spec.dynamic_batch or spec.dynamic_axes):
        return replace(source, dynamic_shapes=spec.dynamic_shapes)
    if spec.dynamic_shapes:
        raise SourceError("dynamic_shapes stands instead of dynamic_batch and dynamic_axes")
    return replace(source, dynamic_shapes=dynamic_shapes(source, spec))


def _given(spec: SourceSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a model that was given itself."""
    if not isinstance(spec.source, torch.nn.Module | ExportedProgram):
        given: Any = spec.source
        is_class = isinstance(given, type)
        what = f"the class {given.__name__}" if is_class else f"{type(given).__name__}"
        raise SourceError(
            f"{what} is no model: give an instance of torch.nn.Module, an ExportedProgram, or a "
            "source as text"
        )
    if isinstance(spec.args, str) or not isinstance(spec.args, Sequence | None):
        raise SourceError(f"args is a tuple of inputs, not {type(spec.args).__name__}")
    if not isinstance(spec.kwargs, Mapping | None):
        raise SourceError(f"kwargs is a dict of inputs, not {type(spec.kwargs).__name__}")
    return tuple(spec.args or ()), dict(spec.kwargs or {})


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
    is_zoo, given = load in _ZOOS, None
    if declared is not None and (is_zoo or not shapes):
        what = f"example_inputs() of {text}"
        given = as_inputs(call(declared, what) if callable(declared) else declared)
    if not shapes and spec.file_inputs and not isinstance(model, ExportedProgram):
        shapes = shapes_of_file(spec.file_inputs, given)
    if is_zoo and spec.weights is None and (given or shapes):
        notes = start_fresh(model, spec, given or random_inputs(model, shapes, spec.seed))
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
