"""What the collections of models have in common."""

import contextlib
import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from passfx.errors import SourceError, first_line
from passfx.source.call import call
from passfx.source.fresh import randomize
from passfx.source.spec import SourceSpec

_TRAINED = ("pretrained", "checkpoint_path", "weights", "weights_backbone")

# What a zoo calls its models.
_NAMES: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "timm": lambda package: package.list_models(),
    "torchvision": lambda package: package.models.list_models(),
}


def build(function: Callable[[], Any], what: str) -> Any:
    """Build a zoo's model; its warnings are for those who wrote it."""
    with warnings.catch_warnings(action="ignore"):
        return call(function, what)


def zoo(name: str) -> Any:
    """The package, or a SourceError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SourceError(f"{name} is not installed: pip install 'passfx[zoo]'") from error
    except Exception as error:
        raise SourceError(
            f"{name} does not import: {first_line(error)}; "
            "torch and torchvision must be builds of one release, from one index"
        ) from error


def start_fresh(
    model: Any, spec: SourceSpec, inputs: tuple[Sequence[Any], Mapping[str, Any]]
) -> tuple[str, ...]:
    """Random norms, biases and layer scales, unless the arguments ask for trained weights.

    Returns:
        The sentence that says so.
    """
    if any((spec.arguments or {}).get(name) for name in _TRAINED):
        return ()
    randomize(model, *inputs, spec.seed)
    return (
        f"no weights were given: norms, biases and layer scales are random (seed {spec.seed}), as "
        'after training; --weights none (weights="none") keeps the library\'s own start',
    )


def unknown(zoo: str, name: str, known: Sequence[str]) -> SourceError:
    """The error of a name that a zoo does not have."""
    close = suggestions(name, exact=True) or _near(name, known)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return SourceError(f"{zoo} has no model {name!r}{hint}")


def suggestions(name: str, *, exact: bool = False) -> list[str]:
    """Sources of the zoos, as far as they are installed, that have this name or one like it."""
    name = name.partition(".")[0]  # "resnet50.a1_in1k" names weights too
    listed: dict[str, Sequence[str]] = {}
    for known, names in _NAMES.items():
        with contextlib.suppress(SourceError):
            listed[known] = names(zoo(known))
    has = [f"{known}:{name.lower()}" for known in listed if name.lower() in listed[known]]
    if has or exact:
        return has
    every = [each for names in listed.values() for each in names]
    return [f"{known}:{each}" for each in _near(name, every) for known in listed
            if each in listed[known]]  # fmt: skip


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Names like this one, or that begin with it."""
    near = difflib.get_close_matches(name.lower(), dict.fromkeys(known), 3)
    return near or [each for each in known if len(name) > 2 and each.startswith(name.lower())][:3]
