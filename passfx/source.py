"""Sources: "timm:resnet18", "file.py:factory", "model.pt2" → a model and its example inputs."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.export import ExportedProgram

from passfx.errors import SourceError

_ZOOS = ("timm:", "torchvision:")
_FORMS = "file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or file.pt2"


@dataclass(frozen=True)
class Source:
    """A model and the inputs to capture it with.

    Attributes:
        name: the source as the user wrote it, or the class of a model that was given.
        args, kwargs: example inputs of `model.forward`.
    """

    name: str
    model: torch.nn.Module | ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputShape:
    """A declared input: `name` is a parameter of `forward`, or None for the next positional one."""

    name: str | None
    sizes: tuple[int, ...]


def parse_input_shape(text: str) -> InputShape:
    """`[NAME:]1x3x224x224` (commas too).

    Raises:
        SourceError: it is not of that form.
    """
    name, _, sizes = text.rpartition(":")
    try:
        parsed = tuple(int(size) for size in sizes.replace(",", "x").split("x"))
    except ValueError:
        parsed = ()
    if not parsed or min(parsed) < 1:
        raise SourceError(f"the input shape {text!r} is not of the form [NAME:]1x3x224x224")
    return InputShape(name or None, parsed)


def parse_argument(text: str) -> tuple[str, Any]:
    """`key=value`, the value as a Python literal where it is one: `8`, `(3, 3)`, `true`, `relu`.

    Raises:
        SourceError: it has no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SourceError(f"the argument {text!r} is not of the form key=value")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def load_source(
    text: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    input_shapes: Sequence[InputShape] = (),
    seed: int = 0,
) -> Source:
    """Build the model that a source names, and example inputs for it.

    Args:
        text: a source of one of the five forms.
        arguments: for the factory.
        weights: .safetensors, or .pt/.pth holding a state dict.
        input_shapes: random inputs of these shapes; else the file's `example_inputs()`, else the
            size that timm or torchvision declares.
        seed: of the model's random weights and of random inputs.

    Raises:
        SourceError: any part of this fails; the message says which and what to do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(text, dict(arguments or {}), weights, input_shapes, seed)


def _load(
    text: str,
    arguments: dict[str, Any],
    weights: Path | None,
    input_shapes: Sequence[InputShape],
    seed: int,
) -> Source:
    declared: Any = None
    model: torch.nn.Module | ExportedProgram
    if text.endswith(".pt2"):
        if arguments or weights:
            raise SourceError(f"{text} is a finished program: it takes no --arg and no --weights")
        model = _load_program(Path(text))
    elif text.startswith("timm:"):
        model, declared = _timm_model(text.removeprefix("timm:"), arguments)
    elif text.startswith("torchvision:"):
        model, declared = _torchvision_model(text.removeprefix("torchvision:"), arguments)
    else:
        model, declared = _factory_model(text, arguments)
    if weights is not None and isinstance(model, torch.nn.Module):
        load_weights(model, weights)
    if input_shapes:
        args, kwargs = _random_inputs(model, input_shapes, seed)
        return Source(text, model, args, kwargs)
    if isinstance(model, ExportedProgram):
        return Source(text, model)
    if declared is None:
        beside = "" if text.startswith(_ZOOS) else ", or define example_inputs() beside the factory"
        raise SourceError(
            f"{text} declares no example inputs: give --input-shape 1x3x224x224{beside}"
        )
    given = _call(declared, f"example_inputs() of {text}") if callable(declared) else declared
    return Source(text, model, *_as_inputs(given))


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict into the model; every key and shape must match.

    Raises:
        SourceError: the file cannot be read, or does not match; the message names the keys.
    """
    state, own = _read_state(path), model.state_dict()
    for prefix in ("module.", "_orig_mod."):  # what DataParallel and torch.compile put before keys
        if all(key.startswith(prefix) for key in state) and not own.keys() & state.keys():
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    found = [f"{what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise SourceError(f"{path} does not fit {type(model).__name__}: {'; '.join(found)}")
    model.load_state_dict(state)


def _some(keys: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SourceError(f"the weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says more than torch's advice
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise SourceError(f"{path} is not a safetensors file: {error}") from error
    except Exception as error:  # a damaged file makes torch.load raise anything
        pickled = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        problem = (
            "holds Python objects, and loading those could run any code"
            if pickled
            else f"cannot be read by torch.load ({type(error).__name__})"
        )
        raise SourceError(
            f"{path} {problem}; save the weights with torch.save(model.state_dict(), ...)"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise SourceError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {str(key): value for key, value in state.items()}


def _load_program(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise SourceError(f"{path} does not exist")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise SourceError(
            f"{path} is not a program saved with torch.export.save: {_first_line(error)}"
        ) from error


def _timm_model(name: str, arguments: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], Any]]:
    timm = _zoo("timm")
    if not timm.is_model(name):
        raise SourceError(_unknown("timm", name, timm.list_models()))
    model = _build(lambda: timm.create_model(name, **arguments), f"timm:{name}")
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *image = config.get("input_size", (3, 224, 224))
    channels, given = arguments.get("in_chans", channels), arguments.get("img_size", image)
    height, width = (given, given) if isinstance(given, int) else given
    return model, lambda: torch.randn(1, channels, height, width)


def _torchvision_model(
    name: str, arguments: dict[str, Any]
) -> tuple[torch.nn.Module, Callable[[], Any] | None]:
    models = _zoo("torchvision").models
    if name not in models.list_models():
        raise SourceError(_unknown("torchvision", name, models.list_models()))
    arguments = {"weights": None, **arguments}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments.setdefault("weights_backbone", None)
    model = _build(lambda: models.get_model(name, **arguments), f"torchvision:{name}")
    try:
        crop = models.get_model_weights(name).DEFAULT.transforms().crop_size
    except AttributeError:
        return model, None
    return (model, lambda: torch.randn(1, 3, crop[0], crop[0])) if len(crop) == 1 else (model, None)


def _build(function: Callable[[], Any], what: str) -> Any:
    """Build a zoo's model; its warnings are for those who wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _call(function, what)


def _zoo(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SourceError(f"{name} is not installed: pip install 'passfx[zoo]'") from error
    except Exception as error:
        raise SourceError(
            f"{name} does not import: {_first_line(error)}; "
            "torch and torchvision must be builds of one release, from one index"
        ) from error


def _unknown(zoo: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3)
    return f"{zoo} has no model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "")


def _factory_model(
    text: str, arguments: dict[str, Any]
) -> tuple[torch.nn.Module, Callable[[], Any] | None]:
    place, _, name = text.rpartition(":")
    if not place or not name or "/" in name:
        raise SourceError(f"{text!r} is not a source: give {_FORMS}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, name, None)
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise SourceError(f"{text} is a module, not a factory: it takes no --arg")
        return factory, getattr(module, "example_inputs", None)
    if not callable(factory):
        known = [
            key
            for key, item in vars(module).items()
            if callable(item) and getattr(item, "__module__", None) == module.__name__
        ]
        close = difflib.get_close_matches(name, known, 3) or known
        hint = f"; it has {_some(close)}" if known else ""
        raise SourceError(f"{place} has no factory {name!r}{hint}")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(map(str, inspect.signature(factory).parameters.values())) or "nothing"
        raise SourceError(
            f"{text}: {error}; it takes {takes}, each given as --arg key=value"
        ) from error
    model = _call(lambda: factory(**arguments), text)
    if not isinstance(model, torch.nn.Module):
        raise SourceError(f"{text} returned {type(model).__name__}, not a torch.nn.Module")
    return model, getattr(module, "example_inputs", None)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SourceError(f"the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _allow_imports_from(path.parent)
    sys.modules.setdefault(path.stem, module)  # so that its dataclasses and pickles find it
    loader = spec.loader
    _call(lambda: loader.exec_module(module), f"importing {path}")
    return module


def _import_module(name: str) -> ModuleType:
    _allow_imports_from(Path.cwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise SourceError(f"there is no module {name!r} to import; a source is {_FORMS}")
    module: ModuleType = _call(lambda: importlib.import_module(name), f"importing {name}")
    return module


def _allow_imports_from(folder: Path) -> None:
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def _call(function: Callable[[], Any], what: str) -> Any:
    """Run the user's code; its exceptions become one sentence with their place."""
    try:
        return function()
    except SourceError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {_first_line(error)}{_place(error)}"
        raise SourceError(message) from error


def _place(error: BaseException) -> str:
    """ " (file.py:12)", the innermost line that belongs neither to torch, to Python nor to us."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})" if error.filename else ""
    frames = [
        f" ({frame.filename}:{frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((str(Path(torch.__file__).parent), __file__, "<"))
    ]
    return frames[-1] if frames else ""


def _first_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def _as_inputs(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tuple is the positional arguments, a dict the keyword ones, anything else the only one."""
    if isinstance(given, dict):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, list | tuple) else ((given,), {})


def _random_inputs(
    model: torch.nn.Module | ExportedProgram, shapes: Sequence[InputShape], seed: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Normally distributed inputs in the model's own floating dtype."""
    generator = torch.Generator().manual_seed(seed)
    floating = [item.dtype for item in model.parameters() if item.dtype.is_floating_point]
    dtype = floating[0] if floating else torch.float32
    drawn = [
        (shape.name, torch.randn(shape.sizes, generator=generator).to(dtype)) for shape in shapes
    ]
    args = tuple(item for name, item in drawn if name is None)
    return args, {name: item for name, item in drawn if name is not None}
