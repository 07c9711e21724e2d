"""A state dict from a file into a model."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from passfx.errors import SourceError, first_line, some
from passfx.source.archive import TRUST_ADVICE
from passfx.source.checkpoint import SAVE_ADVICE, Opaque, modules_in, read_checkpoint
from passfx.source.fit import Fit, fit, parts, without

_SHOWN = 3


def load_weights(
    model: torch.nn.Module,
    path: Path,
    key: str | None = None,
    *,
    strict: bool = True,
    trust_pickle: bool = False,
) -> tuple[str, ...]:
    """Load a state dict into the model; every key and shape must match.

    Mappings around it are unwrapped, and a prefix that all of its keys share is left out where more
    of them fit so. Counters of batches may be missing, and so may a tensor that the model has
    under another name too.

    Args:
        key: which part of the file, with dots between mappings ("ema.state_dict").
        strict: refuse a key that is missing, and one that the model does not have.
        trust_pickle: load whole modules, which can run any code.

    Returns:
        Sentences about what was taken, where the file is more than a state dict that fits.

    Raises:
        SourceError: the file cannot be read, or does not fit; the message names the keys.
    """
    found = read_checkpoint(path, trust_pickle=trust_pickle)
    chosen, where = found, str(path)
    if key is not None:
        chosen, where = _at(found, key, path), f"{key!r} of {path}"
    fits = [fit(part, model.state_dict()) for part in parts(chosen)]
    fits.sort(key=lambda item: item.part.rank)
    whole = [item for item in fits if item.is_whole]
    best = max(fits, key=lambda item: len(item.shared), default=None)
    best = whole[0] if whole else best
    if (best is None or not best.shared) and (pickled := next(modules_in(chosen), None)):
        raise SourceError(
            f"{where} holds a whole pickled module ({pickled.name}), and loading that could run "
            f"any code; {TRUST_ADVICE}, or {SAVE_ADVICE}"
        )
    if best is None:
        raise SourceError(
            f"{where} holds no state dict (a mapping of names to tensors), but {_described(chosen)}"
        )
    if not best.is_whole and (strict or best.misfits or not best.shared):
        raise SourceError(_refusal(best, fits, type(model).__name__, where, key))
    try:
        model.load_state_dict({name: best.state[name] for name in best.shared}, strict=False)
    except Exception as error:  # a tensor without values, a hook of the model's own
        raise SourceError(f"{where} cannot be loaded: {first_line(error)}") from error
    return tuple(_notes(best, [item for item in whole if item is not best], path, key))


def _at(found: Any, key: str, path: Path) -> Any:
    """The value under a key, with dots between mappings; or the keys that begin with it."""
    value = _under(found, key)
    if value is not None:
        return value
    held = [str(name) for name in found] if isinstance(found, Mapping) else []
    near = difflib.get_close_matches(key, held, 1)
    has = f"it has {some(held)}" if held else f"it holds {_described(found)}"
    hint = f"did you mean {near[0]}?" if near else has
    raise SourceError(f"{path} has no {key!r} (--weights-key); {hint}")


def _under(found: Any, key: str) -> Any:
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping):
        return None
    if key in found:
        return found[key]
    for name, inner in found.items():
        if isinstance(name, str) and key.startswith(f"{name}."):
            value = _under(inner, key.removeprefix(f"{name}."))
            if value is not None:
                return value
    return without(found, f"{key}.") or None


def _name(item: Fit, key: str | None, prefix: str = "") -> str:
    """What `--weights-key` chooses a part by: "ema.state_dict"."""
    return ".".join(filter(None, (key, *item.part.path, prefix)))


def _refusal(best: Fit, fits: Sequence[Fit], model: str, where: str, key: str | None) -> str:
    """Which keys do not fit, what comes near them, and what to do."""
    problems = {
        "missing": _nearest(best.missing, best.unexpected or list(best.state)),
        "unexpected": _nearest(best.unexpected, best.missing or list(best.own)),
        "of another shape or dtype": some(best.misfits),
    }
    found = "; ".join(f"{what}: {keys}" for what, keys in problems.items() if keys)
    place = f"{_name(best, None)!r} of {where}" if best.part.path else where
    advice = ""
    subset = next((_name(item, key, prefix) for item in fits for prefix in item.subsets()), None)
    if subset is not None:
        advice = f"; --weights-key {subset} takes a part that fits"
    elif best.misfits:
        advice = "; build the model with the arguments that it was trained with (--arg)"
    elif best.shared:
        count = len(best.shared)
        advice = f"; --no-strict (strict=False) loads the {count} of {len(best.own)} that both have"
    return f"{place} does not fit {model}: {found}{advice}"


def _nearest(keys: Sequence[str], others: Sequence[str]) -> str:
    """The first of some keys, each with the three of the other side that are most like it."""
    shown = list(keys)
    for index, name in enumerate(keys[:_SHOWN]):
        if near := difflib.get_close_matches(name, others, 3, cutoff=0):
            shown[index] = f"{name} (nearest: {', '.join(near)})"
    return some(shown, _SHOWN)


def _notes(best: Fit, others: Sequence[Fit], path: Path, key: str | None) -> Iterator[str]:
    """What was taken, where it is not simply the file, and what does not fit."""
    taken = _name(best, key)
    if taken or best.prefix or others:
        what = repr(taken) if taken else "all keys"
        prefix = f" without the prefix {best.prefix!r}" if best.prefix else ""
        names = ", ".join(repr(_name(other, key)) for other in others)
        also = f"; {names} would fit too (--weights-key)" if names else ""
        yield f"weights from {path}: {what}{prefix}{also}"
    if best.missing:
        yield f"{path} lacks {some(best.missing)}: as the model was built"
    if best.unexpected:
        yield f"{path} has {some(best.unexpected)} besides: left out"


def _described(found: Any) -> str:
    if isinstance(found, Mapping):
        held = [f"{name!s} ({type(item).__name__})" for name, item in found.items()]
        return f"a mapping of {some(held)}" if held else "an empty mapping"
    kind = found.name if isinstance(found, Opaque) else type(found).__name__
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind}"
