"""How the state dicts in a checkpoint fit a model: under which wrapper, without which prefix."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from passfx.source.checkpoint import Opaque

# Where trainers put the weights. Of several parts that fit the first of these is taken, then one
# of another name, and an average last.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "module")
_AVERAGES = ("params_ema", "ema", "ema_state_dict", "model_ema", "state_dict_ema")
_DEPTH = 6  # of mappings in mappings
_COUNTERS = ("num_batches_tracked", "n_averaged")  # that no result depends on

State = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A mapping of names to tensors, and the keys of the mappings that it lies in."""

    path: tuple[str, ...]
    state: State

    @property
    def rank(self) -> int:
        """Its place among parts that fit as well."""
        if not self.path:
            return -1
        names = (*_WRAPPERS, "", *_AVERAGES)
        return names.index(self.path[0] if self.path[0] in names else "")


@dataclass(frozen=True)
class Fit:
    """A part without a prefix of its keys, beside the state dict of a model."""

    part: Part
    prefix: str
    own: State

    @cached_property
    def state(self) -> State:
        """The part without its prefix."""
        return without(self.part.state, self.prefix)

    @cached_property
    def shared(self) -> list[str]:
        """The keys that both have."""
        return [key for key in self.own if key in self.state]

    @cached_property
    def missing(self) -> list[str]:
        """Those of the model alone, but for counters and second names of tensors that are given."""
        given = {_place(self.own[key]) for key in self.shared} - {None}
        return [
            key for key, item in self.own.items()
            if key not in self.state and not _counts(key) and _place(item) not in given
        ]  # fmt: skip

    @cached_property
    def unexpected(self) -> list[str]:
        """Those of the file alone, but for counters."""
        return [key for key in self.state if key not in self.own and not _counts(key)]

    @cached_property
    def misfits(self) -> list[str]:
        """What is wrong with tensors that both have, each in words."""
        pairs = ((key, self.state[key], self.own[key]) for key in self.shared)
        return [f"{key} {wrong}" for key, has, due in pairs if (wrong := _misfit(has, due))]

    @property
    def is_whole(self) -> bool:
        """Whether every key fits."""
        return bool(self.shared) and not (self.missing or self.unexpected or self.misfits)

    def subsets(self) -> Iterator[str]:
        """Prefixes, beside keys of another one, below which the file has all that the model has."""
        found: Counter[str] = Counter()
        for key, item in self.part.state.items():
            words = key.split(".")
            for cut in range(1, len(words)):
                rest = ".".join(words[cut:])
                if rest in self.own and not _counts(rest) and not _misfit(item, self.own[rest]):
                    found[".".join(words[:cut])] += 1
        needed = sum(not _counts(key) for key in self.own)
        return (prefix for prefix, count in found.items() if count == needed)


def parts(found: Any, path: tuple[str, ...] = ()) -> Iterator[Part]:
    """The state dicts in nested mappings; of a module, its own."""
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or len(path) > _DEPTH:
        return
    named = {key: item for key, item in found.items() if isinstance(key, str)}
    state = {key: item for key, item in named.items() if _is_state(key, item)}
    if any(isinstance(item, Tensor) for item in state.values()):
        yield Part(path, state)
    for key, inner in named.items():
        yield from parts(inner, (*path, key))


def fit(part: Part, own: State) -> Fit:
    """The part without as much of the prefix that its keys share as makes the most keys fit."""
    fits = [Fit(part, "", own)]
    keys = [key for key in part.state if key in own or not _counts(key)]
    while True:
        cut = len(fits[-1].prefix)
        heads = {key[cut:].rpartition(".")[0].partition(".")[0] for key in keys}
        if len(heads) != 1 or "" in heads:
            return max(fits, key=lambda item: len(item.shared))
        fits.append(Fit(part, f"{fits[-1].prefix}{heads.pop()}.", own))


def without(state: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """What begins with a prefix, without it."""
    cut = len(prefix)
    return {
        key[cut:]: item for key, item in state.items()
        if isinstance(key, str) and key.startswith(prefix)
    }  # fmt: skip


def _is_state(key: str, item: Any) -> bool:
    is_extra = key.endswith("_extra_state") and not isinstance(item, Opaque)
    return isinstance(item, Tensor) or is_extra


def _counts(key: str) -> bool:
    return key.rpartition(".")[2] in _COUNTERS


def _place(item: Any) -> tuple[Any, ...] | None:
    """Where a tensor lies, which is one place for a tensor of two names."""
    if not isinstance(item, Tensor) or is_lazy(item) or item.is_meta or not item.numel():
        return None
    return item.data_ptr(), item.shape, item.stride()


def _misfit(has: Any, due: Any) -> str:
    """What is wrong with a tensor; another dtype of the same kind is converted, as torch does."""
    if not isinstance(has, Tensor) or not isinstance(due, Tensor) or is_lazy(due):
        return ""
    if has.shape != due.shape:
        return f"{tuple(has.shape)} instead of {tuple(due.shape)}"
    if has.is_floating_point() != due.is_floating_point() or has.is_complex() != due.is_complex():
        return f"{has.dtype} instead of {due.dtype}".replace("torch.", "")
    return ""
