"""The state of a user's model: kept while something runs the model, and put back afterwards.

Many models write to themselves when they run: a detection head caches its anchors, a layer counts
its calls, a list collects features. What a tracer lets them write are its own fake tensors.
"""

import argparse
import collections
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_STANDARD = frozenset(vars(torch.nn.Module()))  # the fields that every module has
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (dict, list, set, collections.deque)
_HOLDERS = (torch.nn.Module, Tensor, types.SimpleNamespace, argparse.Namespace)
_FOREIGN = {"torch", *sys.stdlib_module_names} - {"collections"}


@dataclass(frozen=True)
class _Owner:
    """A container, or the attributes of an object, and what was in it; `path` is what names it."""

    path: str
    fields: Any
    before: list[tuple[Any, Any]]
    has_attributes: bool
    is_standard: bool

    def name(self, key: Any) -> str:
        named = f"{self.path}.{key}" if self.has_attributes else f"{self.path}[{key!r}]"
        return named.removeprefix(".")

    def changed(self) -> Iterator[str]:
        """The names of the entries that came, went, or have another value."""
        before, now = dict(self.before), dict(_items(self.fields))
        for key in before | now:
            standard = self.is_standard or (self.has_attributes and key in _STANDARD)
            known = key in before and key in now
            if not standard and not (known and _same(before[key], now[key])):
                yield self.name(key)

    def restore(self) -> None:
        now = _items(self.fields)
        if len(now) == len(self.before) and all(
            _same(key, old_key) and item is old
            for (key, item), (old_key, old) in zip(now, self.before, strict=True)
        ):
            return
        self.fields.clear()
        for key, item in self.before:
            if isinstance(self.fields, dict):
                self.fields[key] = item
            elif isinstance(self.fields, set):
                self.fields.add(item)
            else:
                self.fields.append(item)


@dataclass(frozen=True)
class _Numbers:
    """A tensor, the memory that it used, and a copy of what was in it."""

    path: str
    tensor: Tensor
    memory: Tensor
    copy: Tensor

    @property
    def is_changed(self) -> bool:
        return not same_numbers(self.tensor, self.copy)

    def restore(self) -> None:
        if self.is_changed:
            if not same_numbers(self.memory, self.copy):
                self.memory.data.copy_(self.copy)  # `.data`: no change that autograd must know
            self.tensor.data = self.memory


@dataclass(frozen=True)
class State:
    """All that can be reached from a model: attributes, containers, hooks, flags, tensors."""

    _owners: list[_Owner] = field(default_factory=list)
    _numbers: list[_Numbers] = field(default_factory=list)

    @classmethod
    def of(cls, model: torch.nn.Module, *, weights: bool = False) -> "State":
        """The present state; of parameters and buffers the numbers only if `weights` is set."""
        state = cls()
        registered = {id(item) for item in (*model.parameters(), *model.buffers())}
        pending: list[tuple[str, Any, bool]] = [("", model, False)]
        seen: set[int] = set()
        while pending:
            path, item, is_standard = pending.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, Tensor) and (weights or id(item) not in registered):
                memory = item.detach()
                state._numbers.append(_Numbers(path, item, memory, memory.clone()))
            fields = _fields(item)
            if fields is None:
                continue
            attributes = is_standard or fields is not item
            owner = _Owner(path, fields, _items(fields), attributes, is_standard)
            if not isinstance(item, tuple):
                state._owners.append(owner)
            for key, child in owner.before:
                inner = isinstance(item, torch.nn.Module) and key in _STANDARD
                pending.append((path if inner else owner.name(key), child, inner))
        return state

    def changed(self) -> list[str]:
        """The attributes that are not what they were ("head.anchors"), but for torch's own."""
        return sorted(name for owner in self._owners for name in owner.changed())

    def written(self) -> list[str]:
        """The tensors whose numbers are not what they were."""
        return sorted(item.path for item in self._numbers if item.is_changed)

    def restore(self) -> None:
        """Put back what is not as it was; what did not change is not touched."""
        for owner in self._owners:
            owner.restore()
        for item in self._numbers:
            item.restore()


@contextmanager
def preserved(model: torch.nn.Module, *, weights: bool = False) -> Iterator[State]:
    """A block that runs or traces a model and leaves it exactly as it was, also where it raises.

    Everything that can be reached through attributes and containers is put back by identity, and
    the numbers of tensors that are plain attributes are put back into them. A tracer has fake
    tensors in the place of parameters and buffers; a block that really runs the model sets
    `weights`, which keeps a copy of their numbers too.
    """
    state = State.of(model, weights=weights)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def evaluating(model: torch.nn.Module, *, weights: bool = False) -> Iterator[State]:
    """`preserved`, with every submodule's flag set to eval; the model's own `train()` is not run.

    Nothing is recorded for gradients.
    """
    flags = {module: module.training for module in model.modules()}
    with preserved(model, weights=weights) as state, torch.no_grad():
        try:
            for module in flags:
                module.training = False
            yield state
        finally:
            for module, training in flags.items():
                module.training = training


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit by bit; those that cannot be compared count as equal."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    try:
        return torch.equal(_bits(one), _bits(other))
    except (RuntimeError, NotImplementedError):  # sparse, meta
        return True


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.reshape(-1).contiguous().view(torch.uint8)


def _fields(item: Any) -> Any:
    """What an object owns: the elements of a container, or its attributes; None for neither."""
    if isinstance(item, (*_CONTAINERS, tuple)):
        return item
    is_own = type(item).__module__.partition(".")[0] not in _FOREIGN
    if isinstance(item, type | types.FunctionType) or not (is_own or isinstance(item, _HOLDERS)):
        return None
    try:
        return object.__getattribute__(item, "__dict__")
    except AttributeError:
        return None


def _items(fields: Any) -> list[tuple[Any, Any]]:
    if isinstance(fields, dict):
        return list(fields.items())
    if isinstance(fields, set):
        return [(id(item), item) for item in sorted(fields, key=id)]
    return list(enumerate(fields))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one object or equal plain ones; a symbol is never compared."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, _PLAIN) and one == other
