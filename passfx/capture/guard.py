"""What a captured graph takes: a check of every call."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from passfx.capture.program import Captured
from passfx.capture.rules import SizeRule
from passfx.graph.query import value
from passfx.graph.shapes import fixed

_Check = Callable[[Any], None]


@dataclass(frozen=True)
class InputCheck:
    """A forward hook: a graph is only right for inputs like those that it was captured with.

    Attributes:
        parameters: of the graph's `forward`; the first `positional` of them are given by place.
        spec: how the inputs are nested.
        expected: a check of each flat input; None for a number that may vary.
        rules: what must hold for the sizes that vary.
    """

    parameters: tuple[str, ...]
    positional: int
    spec: pytree.TreeSpec
    expected: tuple[_Check | None, ...]
    rules: tuple[SizeRule, ...] = ()

    @classmethod
    def of(cls, captured: Captured, module: GraphModule) -> "InputCheck":
        """The check for a graph that was rewritten from a captured one."""
        return cls(
            tuple(inspect.signature(module.forward).parameters),
            len(captured.args),
            module._in_spec,
            tuple(map(_expected, captured.placeholders)),
            captured.rules,
        )

    def attach(self, module: GraphModule) -> None:
        """Check every call of a graph module and of its copies, to which hooks do not pass on."""
        module.register_forward_pre_hook(self, with_kwargs=True)
        module._register_deepcopy_hook(self.attach)

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Raise ValueError where an input differs in nesting, shape, dtype or fixed value."""
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(args) > len(self.parameters) or given.keys() != set(self.parameters):
            return  # forward() itself says which one is missing or too much
        named = {name: given[name] for name in self.parameters}
        placed = tuple(named.pop(name) for name in self.parameters[: self.positional])
        try:
            flat = fx_pytree.tree_flatten_spec((placed, named), self.spec)
        except (LookupError, TypeError, RuntimeError):
            flat = []
        if len(flat) != len(pytree.tree_leaves((placed, named))):
            raise ValueError("the inputs are nested in another way than the example inputs were")
        for item, expected in zip(flat, self.expected, strict=True):
            if expected is not None:
                expected(item)
        for rule in self.rules:
            rule.check(flat)


def _expected(node: Node) -> _Check | None:
    given = value(node)
    if isinstance(given, torch.Tensor):
        sizes = [fixed(size) for size in given.shape]
        return partial(_check_tensor, node.name, given.dtype, sizes)
    return None if isinstance(given, torch.SymInt) else partial(_check_fixed, node.name, given)


def _check_tensor(name: str, dtype: torch.dtype, sizes: Sequence[int | None], item: Any) -> None:
    """A size that may vary is None."""
    if not isinstance(item, torch.Tensor):
        raise ValueError(f"input {name} must be a tensor, not {item!r}")
    fits = len(item.shape) == len(sizes) and all(
        wanted in (None, size) for size, wanted in zip(item.shape, sizes, strict=True)
    )
    if item.dtype != dtype or not fits:
        shape = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(
            f"input {name} must be {dtype} [{shape}], not {item.dtype} {list(item.shape)}; "
            "sizes that vary are declared with dynamic_shapes"
        )


def _check_fixed(name: str, expected: Any, item: Any) -> None:
    """The value is no tensor and became part of the graph; 2 and 2.0 give other dtypes."""
    if isinstance(item, torch.Tensor) or type(item) is not type(expected) or item != expected:
        given = "a tensor" if isinstance(item, torch.Tensor) else repr(item)
        raise ValueError(
            f"input {name} must be {expected!r}, with which the model was captured, not {given}"
        )
