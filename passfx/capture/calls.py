"""Really calling a user's model: why it cannot be traced, and whether one call changes the next."""

import copy
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from passfx.capture.dtypes import dtype_advice, floating_dtype, wanted_dtypes
from passfx.capture.dynamic import Inputs
from passfx.capture.state import evaluating, same_numbers
from passfx.errors import CaptureError, named_line
from passfx.graph.query import dtype_name, tensors

_TABLES = (torch.nn.Embedding, torch.nn.EmbeddingBag)


def explain(error: Exception, model: torch.nn.Module, inputs: Inputs) -> str:
    """Why tracing failed, in one sentence: what, at which line of the user's code, on what."""
    name, reason, line = type(model).__name__, named_line(error), _user_line(error)
    at = f" at {line}" if line else ""
    violated = _violated(error)
    if violated:
        return (
            f"{name} cannot be captured for sizes that vary as declared{at}: {violated}; leave "
            "such a size fixed, or declare the range in which the model does the same"
        )
    try:
        with evaluating(model, weights=True) as state:
            _call(model, inputs)
            written = state.written()
    except Exception:
        shapes = [
            f"{dtype_name(item.dtype)} {'x'.join(map(str, item.shape)) or 'scalar'}"
            for item in tensors(pytree.tree_leaves(inputs))
        ]
        with evaluating(model, weights=True):
            wanted = wanted_dtypes(model, inputs, lambda given: _call(model, given))
        advice = dtype_advice(model, wanted)
        return f"{name} itself fails on inputs of {', '.join(shapes)}{at}: {reason}{advice}"
    advice = ""
    if "data-dependent" in reason:
        advice = "; its flow depends on the value of a tensor: use torch.where or torch.cond there"
    elif written:
        advice = f"; it writes to its own {_listed(written)} in eval mode, which a graph cannot do"
    return f"{name} cannot be captured{at}: {reason}{advice}"


def check_call(model: torch.nn.Module, inputs: Inputs) -> None:
    """Refuse inputs on which the model itself fails, though the tracer does not.

    The tracer looks at no value, lets some operators mix dtypes, and torch 2.11's takes floats for
    indices. The model is really called where it has embeddings, and where a tensor has another
    dtype than the weights: an index, a mask, the wrong precision.

    Raises:
        CaptureError: as `explain` says it.
    """
    own = floating_dtype(model)
    looks_up = any(isinstance(part, _TABLES) for part in model.modules())
    if not looks_up and all(item.dtype == own for item in tensors(pytree.tree_leaves(inputs))):
        return
    try:
        with evaluating(model):
            _call(model, inputs)
    except Exception as error:
        raise CaptureError(explain(error, model, inputs)) from error


def _violated(error: Exception) -> str:
    """What the tracer says of dynamic sizes that the model made constant or narrowed."""
    first, *rest = str(error).splitlines() or [""]
    told = (line.strip().removeprefix("- ") for line in rest if line.strip().startswith("- "))
    if "Constraints violated" not in first:
        return ""
    return "; ".join(line.partition(". If you're")[0] for line in told)


def refuse_memory(model: torch.nn.Module, inputs: Inputs, changed: Sequence[str]) -> None:
    """Refuse a model whose next call gives something else, because this one left something behind.

    A graph gives the same at every call. The model is called twice; only if the results differ,
    and the first one comes again from the state that it came from, the state is the cause. A cache
    that is made anew, or a counter that no result depends on, is no reason.

    Args:
        changed: the attributes that a call changes, as far as they are known.

    Raises:
        CaptureError: with the attributes, and the lines that assign them where they are found.
    """
    with evaluating(model, weights=True):
        first, second = _call(model, inputs), _call(model, inputs)
    if _agree(first, second):
        return
    lines: dict[str, str] = {}
    with evaluating(model, weights=True), _noted_assignments(model, changed, lines):
        again = _call(model, inputs)
    if _agree(first, again):
        at = f" at {', '.join(dict.fromkeys(lines.values()))}" if lines else ""
        raise CaptureError(
            f"{type(model).__name__} gives another result at its second call, because forward() "
            f"changes its own {_listed(changed)}{at}, which a fixed graph cannot do; make it an "
            "input and an output"
        )


def _call(model: torch.nn.Module, inputs: Inputs) -> list[Any]:
    """What a call returns, flat; with the same random numbers every time, and none used up."""
    args, kwargs = copy.deepcopy(inputs)
    used = {item.device.index for item in model.parameters() if item.device.type == "cuda"}
    with torch.random.fork_rng(sorted(used)):
        results = pytree.tree_leaves(model(*args, **kwargs))
    return [item.clone() if isinstance(item, Tensor) else item for item in results]


def _agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=False)
    return len(one) == len(other) and all(same_numbers(*pair) for pair in pairs)


@contextmanager
def _noted_assignments(
    model: torch.nn.Module, names: Sequence[str], lines: dict[str, str]
) -> Iterator[None]:
    """Note in `lines` where an attribute of these names is assigned."""
    kinds = {path: (module, type(module)) for path, module in model.named_modules()}
    owners = {name.rpartition(".")[0] for name in names} & kinds.keys()
    try:
        for path in owners:
            module, kind = kinds[path]
            module.__class__ = _noting(kind, path, names, lines)
        yield
    finally:
        for path in owners:
            module, kind = kinds[path]
            module.__class__ = kind


def _noting(kind: Any, path: str, names: Sequence[str], lines: dict[str, str]) -> Any:
    def note(module: Any, key: str, value: Any) -> None:
        name = f"{path}.{key}".removeprefix(".")
        if name in names:
            caller = sys._getframe(1)
            lines[name] = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        kind.__setattr__(module, key, value)

    return type(kind.__name__, (kind,), {"__setattr__": note, "__module__": kind.__module__})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")


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
