"""What models return, of any class: taken apart into tensors, put together again, named.

torch's pytree knows standard containers, and the classes that somebody registered for the whole
process. Objects of all others are taken apart here by their attributes and elements, and nothing is
registered: what makes such an object again stands where the specification of a named tuple has its
class, which pytree calls with the values.
"""

import enum
from collections import OrderedDict, namedtuple
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from passfx.errors import CaptureError

_LEAVES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, bool, int, float, str)
_CONSTANTS = (complex, bytes, range, enum.Enum, type, torch.dtype, torch.device, torch.layout,
    torch.memory_format)  # fmt: skip
_CONTAINERS = (OrderedDict, dict, list, tuple)
_CLOSED = (torch.nn.Module, ModuleType, MethodType)
_HEAP_TYPE = 1 << 9  # of `type.__flags__`: a class that Python code defined


@dataclass(frozen=True)
class _Constant:
    """A value that is the same at every call."""

    item: Any

    def __call__(self) -> Any:
        return self.item


@dataclass(frozen=True)
class _Maker:
    """An object without what it holds; called with that, it makes one.

    Attributes:
        kind: its class, whose own constructor is not run.
        attributes: the names of those that are given first.
        keys: of the elements that are given then, where it is a mapping.
        shared: the attributes that are also elements, under the same name.
    """

    kind: Any
    attributes: tuple[str, ...]
    keys: tuple[Hashable, ...]
    shared: tuple[str, ...]

    def __call__(self, *values: Any) -> Any:
        count = len(self.attributes)
        elements, base = values[count:], _base(self.kind)
        made = base.__new__(self.kind, *([elements] if base is tuple else []))
        if base is list:
            list.extend(made, elements)
        items = dict(zip(self.keys, elements, strict=False))
        for key, item in items.items():
            base.__setitem__(made, key, item)
        named = dict(zip(self.attributes, values, strict=False))
        for name, item in (named | {name: items[name] for name in self.shared}).items():
            object.__setattr__(made, name, item)
        return made


def take_apart(result: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of a result, which are tensors and plain values, and what nests them.

    `torch.utils._pytree.tree_unflatten` makes the result again.

    Raises:
        CaptureError: something in it has no attributes or elements to see, or holds itself.
    """
    return _take_apart(result, ())


def result_leaves(result: Any) -> list[Any]:
    """The leaves of a result, as `take_apart` gives them."""
    return take_apart(result)[0]


def is_foreign(spec: pytree.TreeSpec) -> bool:
    """Whether a result holds an object of a class that pytree does not know."""
    return isinstance(spec.context, _Maker | _Constant) or any(map(is_foreign, spec.children()))


def leaf_names(tree: Any) -> list[tuple[str, ...]]:
    """For each leaf the keys, indices and attributes that lead to it."""
    children = _children(tree)
    if children is None:
        return [()]
    return [(name, *path) for name, child in children for path in leaf_names(child)]


def _take_apart(item: Any, outer: tuple[Any, ...]) -> tuple[list[Any], pytree.TreeSpec]:
    """`outer` are the objects that hold this one."""
    flat, spec = pytree.tree_flatten(item)
    parts = [([leaf], None) if _is_leaf(leaf) else _opened(leaf, outer) for leaf in flat]
    leaves = [leaf for held, _ in parts for leaf in held]
    return leaves, _grafted(spec, iter([part for _, part in parts]))


def _opened(item: Any, outer: tuple[Any, ...]) -> tuple[list[Any], pytree.TreeSpec]:
    if isinstance(item, _CONSTANTS):
        return [], _spec(_Constant(item), [])
    children = _own_children(item)
    is_cycle = any(item is other for other in outer)
    if is_cycle or children is None:
        why = " that holds itself" if is_cycle else ", in which no tensors can be seen"
        raise CaptureError(
            f"the result holds an object of {_class_name(item)}{why}; return tensors in tuples, "
            "lists, dicts or dataclasses"
        )
    keys = tuple(_elements(item)) if isinstance(item, dict) else ()
    shared = tuple(name for name in _attributes(item) if _is_shared(item, name))
    own = tuple(name for name in _attributes(item) if name not in shared)
    parts = [_take_apart(child, (*outer, item)) for _, child in children]
    leaves = [leaf for held, _ in parts for leaf in held]
    return leaves, _spec(_Maker(type(item), own, keys, shared), [spec for _, spec in parts])


def _grafted(spec: pytree.TreeSpec, parts: Iterator[pytree.TreeSpec | None]) -> pytree.TreeSpec:
    """A specification with those of objects in the place of its leaves."""
    if spec.is_leaf():
        return next(parts) or spec
    children = [_grafted(child, parts) for child in spec.children()]
    return pytree.TreeSpec(spec.type, spec.context, children)


def _spec(context: Any, children: list[pytree.TreeSpec]) -> pytree.TreeSpec:
    return pytree.TreeSpec(namedtuple, context, children)


def _is_leaf(item: Any) -> bool:
    return item is None or (isinstance(item, _LEAVES) and not isinstance(item, enum.Enum))


def _children(tree: Any) -> list[tuple[str, Any]] | None:
    """What pytree, or else the object itself, says that it holds, by name; None for a leaf."""
    try:
        keyed, spec = pytree.tree_flatten_with_path(tree, is_leaf=lambda item: item is not tree)
    except ValueError:  # of a class that was registered without keys
        return _found_names(tree)
    if spec.is_leaf():
        return [] if isinstance(tree, _CONSTANTS) else _own_children(tree)
    return [(_key_name(path[0]), child) for path, child in keyed]


def _own_children(item: Any) -> list[tuple[str, Any]] | None:
    """The attributes of an object, then its elements; None where it is not made of them."""
    is_python = type(item).__flags__ & _HEAP_TYPE
    if _is_leaf(item) or isinstance(item, _CLOSED) or not is_python:
        return None
    named = {name: held for name, held in _attributes(item).items() if not _is_shared(item, name)}
    return [*named.items(), *((str(key), held) for key, held in _elements(item).items())]


def _attributes(item: Any) -> dict[str, Any]:
    slots = [
        name
        for base in reversed(type(item).__mro__)
        for name, found in vars(base).items()
        if isinstance(found, MemberDescriptorType) and hasattr(item, name)
    ]
    return {name: getattr(item, name) for name in slots} | getattr(item, "__dict__", {})


def _elements(item: Any) -> dict[Any, Any]:
    base = _base(type(item))
    if issubclass(base, dict):
        return dict(base.items(item))
    return dict(enumerate(base.__iter__(item))) if base in _CONTAINERS else {}


def _base(kind: Any) -> Any:
    return next((base for base in _CONTAINERS if issubclass(kind, base)), object)


def _is_shared(item: Any, name: str) -> bool:
    """Whether an attribute of a mapping is its element of the same name."""
    elements = _elements(item) if isinstance(item, dict) else {}
    return name in elements and elements[name] is _attributes(item)[name]


def _found_names(tree: Any) -> list[tuple[str, Any]]:
    """The children of an object of a registered class, by the names that it has for them."""
    children, _ = pytree.tree_flatten(tree, is_leaf=lambda item: item is not tree)
    known = [*(tree.items() if isinstance(tree, Mapping) else ()), *_attributes(tree).items()]
    names: list[str] = []
    for place, child in enumerate(children):
        found = (str(name) for name, item in known if item is child and str(name) not in names)
        names.append(next(found, str(place)))
    return list(zip(names, children, strict=True))


def _key_name(key: Any) -> str:
    """A dict's key, a sequence's index, or an attribute's name."""
    return next(str(getattr(key, kind)) for kind in ("key", "idx", "name") if hasattr(key, kind))


def _class_name(item: Any) -> str:
    kind = type(item)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"
