"""Really calling a user's model: what it returns, and whether one call changes the next."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from passfx.capture.dynamic import Inputs
from passfx.capture.state import evaluating, same_numbers
from passfx.errors import CaptureError, some
from passfx.graph.query import tensors
from passfx.graph.results import result_leaves


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
        first, second = call(model, inputs), call(model, inputs)
    if _agree(first, second):
        return
    lines: dict[str, str] = {}
    with evaluating(model, weights=True), _noted_assignments(model, changed, lines):
        again = call(model, inputs)
    if _agree(first, again):
        at = f" at {', '.join(dict.fromkeys(lines.values()))}" if lines else ""
        names = some([*map(repr, changed)], 3)
        raise CaptureError(
            f"{type(model).__name__} gives another result at its second call, because forward() "
            f"changes its own {names}{at}, which a fixed graph cannot do; make it an "
            "input and an output"
        )


def call(model: torch.nn.Module, inputs: Inputs) -> list[Any]:
    """What a call returns, flat; with the same random numbers every time, and none used up."""
    args, kwargs = copy.deepcopy(inputs)
    used = {item.device.index for item in model.parameters() if item.device.type == "cuda"}
    with torch.random.fork_rng(sorted(used)):
        results = result_leaves(model(*args, **kwargs))
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
