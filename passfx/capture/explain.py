"""Why a model cannot be traced, in one sentence: what, at which line of whose code, the way out."""

import re
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from passfx.capture.bounds import source_name
from passfx.capture.calls import call
from passfx.capture.dtypes import dtype_advice, wanted_dtypes
from passfx.capture.dynamic import Inputs
from passfx.capture.state import evaluating
from passfx.errors import CaptureError, first_line, named_line, some
from passfx.graph.query import dtype_name, floating_dtype, tensors

_ON_DATA = ("GuardOnDataDependentSymNode", "DataDependentOutputException",
    "DynamicOutputShapeException")  # fmt: skip
_CONSTANT = re.compile(
    r"You marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)"
)
_SIZE = re.compile(r"L\['(\w+)'\](\S*)\.size\(\)\[(\d+)\]")
Constants = dict[str, tuple[int, str]]
_INSTALLED = {"site-packages", "dist-packages"}
_TABLES = (torch.nn.Embedding, torch.nn.EmbeddingBag)
_LONGEST = 80  # characters of a line of code that are shown


def note_constants(environment: Any, constants: Constants) -> None:
    """Note of each size that a `ShapeEnv` knows which constant it becomes, and where."""
    replace = environment._set_replacement

    def noted(symbol: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if value.is_number:
            became = int(value), _place(traceback.extract_stack(sys._getframe(1)))
            for source in environment.var_to_sources.get(symbol, ()):
                constants.setdefault(source_name(source), became)
        return replace(symbol, value, *args, **kwargs)

    environment._set_replacement = noted


def explain(error: Exception, model: torch.nn.Module, inputs: Inputs, constants: Constants) -> str:
    """Why tracing failed.

    Args:
        constants: what `note_constants` noted.
    """
    stack = traceback.extract_tb(error.__traceback__)
    name, reason, at = type(model).__name__, _reason(error), _place(stack)
    violated = _violated(error, constants)
    if violated:
        size = "the batch" if {*re.findall(r"axis (\d+) of", violated)} == {"0"} else "such a size"
        return (
            f"{name} cannot be captured for sizes that vary as declared{at}: {violated}; leave "
            f"{size} fixed, or declare the range in which the model does the same"
        )
    try:
        with evaluating(model, weights=True) as state:
            call(model, inputs)
            written = state.written()
    except Exception:
        shapes = [
            f"{dtype_name(item.dtype)} {'x'.join(map(str, item.shape)) or 'scalar'}"
            for item in tensors(pytree.tree_leaves(inputs))
        ]
        with evaluating(model, weights=True):
            wanted = wanted_dtypes(model, inputs, lambda given: call(model, given))
        advice = dtype_advice(model, wanted)
        return f"{name} itself fails on inputs of {', '.join(shapes)}{at}: {reason}{advice}"
    if type(error).__name__ in _ON_DATA or "data-dependent" in reason:
        inner = next(iter(_frames(stack)), None)
        way = (
            "use torch.where or torch.cond there"
            if inner is None or _is_own(inner)
            else "that is library code: convert the parts before and after it (a detector's "
            "backbone and head) as modules of their own, or switch it off if the model has an "
            "option for it"
        )
        return f"{name} cannot be captured{at}: its flow depends on the value of a tensor; {way}"
    advice = ""
    if written:
        names = some([*map(repr, written)], 3)
        advice = f"; it writes to its own {names} in eval mode, which a graph cannot do"
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
    is_usual = all(item.dtype == own for item in tensors(pytree.tree_leaves(inputs)))
    if is_usual and not any(isinstance(item, _TABLES) for item in model.modules()):
        return
    try:
        with evaluating(model):
            call(model, inputs)
    except Exception as error:
        raise CaptureError(explain(error, model, inputs, {})) from error


def _reason(error: Exception) -> str:
    """What the tracer says, without the names of its own classes and its advice to itself."""
    own = type(error).__module__.startswith("torch.")
    text = first_line(error) if own else named_line(error)
    if unknown := re.search(r"Unsupported input type <class '(.*?)'>", text):
        return (
            f"torch.export takes no {unknown[1]} as an input; give its tensors in tuples, lists or "
            "dicts, or leave a cache out (use_cache=False)"
        )
    return re.split(r"\s*(?:For more information|See https?://)", text)[0]


def _violated(error: Exception, constants: Constants) -> str:
    """What the tracer says of dynamic sizes that the model made constant or narrowed."""
    first, *rest = str(error).splitlines() or [""]
    told = (line.strip().removeprefix("- ") for line in rest if line.strip().startswith("- "))
    if "Constraints violated" not in first:
        return ""
    return "; ".join(_said(line.partition(". If you're")[0], constants) for line in told)


def _said(line: str, constants: Constants) -> str:
    found = _CONSTANT.match(line)
    if found is None:
        return line
    size, constant = found[1], int(found[2])
    _, place = constants.get(size) or next(  # a size that the user named
        (became for became in constants.values() if became[0] == constant), (0, "")
    )
    axis = _SIZE.fullmatch(size)
    what = f"axis {axis[3]} of {axis[1]}{axis[2]}" if axis else size
    return f"{what} becomes the constant {constant}{place}"


def _place(stack: traceback.StackSummary) -> str:
    """ " at file.py:12 (code)": the innermost line that is not torch's, and who called it if that
    is a library's."""
    frames = _frames(stack)
    if not frames:
        return ""
    inner = frames[0]
    code = (inner.line or "").strip()
    code = code if len(code) <= _LONGEST else f"{code[:_LONGEST]}…"
    own = next(filter(_is_own, frames), None)
    called = "" if own in (None, inner) else f", called at {own.filename}:{own.lineno}"
    return f" at {inner.filename}:{inner.lineno} ({code}){called}"


def _frames(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames below the tracer that belong neither to torch nor to passfx, innermost first."""
    standard = Path(sysconfig.get_path("stdlib"))
    tracer = {Path(torch.__file__).parent, Path(__file__).parents[1]}
    start = max((place for place, frame in enumerate(stack) if _is_ours(frame)), default=-1)
    own = []
    for frame in reversed(stack[start + 1 :]):
        folders = set(Path(frame.filename).parents)
        names = {folder.name for folder in folders}
        library = standard in folders and not names & _INSTALLED
        if not (library or tracer & folders or "sympy" in names or frame.filename[0] == "<"):
            own.append(frame)
    return own


def _is_own(frame: traceback.FrameSummary) -> bool:
    """Whether the user wrote it, and no library."""
    return _INSTALLED.isdisjoint(Path(frame.filename).parts)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(__file__).parents[1] in Path(frame.filename).parents
