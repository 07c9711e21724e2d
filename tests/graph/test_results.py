"""Results of any class: taken apart, put together again as the same, and named."""

import copy
import dataclasses
import enum
import pickle
import warnings
from collections import OrderedDict, UserDict, deque, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passfx.errors import CaptureError
from passfx.graph.results import is_foreign, leaf_names, result_leaves, take_apart

Pair = namedtuple("Pair", "first second")


class Colour(enum.Enum):
    RED = 1


class Count(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Plain:
    first: Any
    second: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    first: Any
    second: Any = None


@dataclasses.dataclass
class Checked:
    """Its constructor does what may be done once: to an argument, and to a field of its own."""

    first: Any
    twice: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.first = self.first + 1
        self.twice = self.first * 2


class Spaced:
    __slots__ = ("__dict__", "unset", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class Base(OrderedDict[str, Any]):
    """As the outputs of model libraries are: a dict of the fields that are not None."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if getattr(self, field.name) is not None:
                super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key: str, item: Any) -> None:
        raise TypeError("outputs are made once")


@dataclasses.dataclass
class Output(Base):
    logits: Any = None
    hidden: Any = None
    pooled: Any = None


class Typed(NamedTuple):
    first: Any
    second: Any


class Listed(list[Any]):
    pass


class Tupled(tuple[Any, ...]):
    pass


def same(one: Any, other: Any) -> bool:
    """Whether two results are of the same classes and hold the same."""
    flat, spec = take_apart(one)
    others, other_spec = take_apart(other)
    pairs = zip(flat, others, strict=True)
    return spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
    )


A, B = torch.arange(3.0), torch.arange(4.0)
RESULTS: list[tuple[Any, list[str]]] = [
    (A, [""]),
    (None, [""]),
    ((A, None, [B, {"k": A}]), ["0", "1", "2.0", "2.1.k"]),
    ({"a": A, 3: {"b": None}}, ["a", "3.b"]),
    (deque([A, B]), ["0", "1"]),
    (Pair(A, None), ["first", "second"]),
    (Typed(A, {"x": B}), ["first", "second.x"]),
    (Plain(A), ["first", "second"]),
    (Plain(A, (Frozen(B, 2.0), "text")),
     ["first", "second.0.first", "second.0.second", "second.1"]),
    (Frozen(Pair(A, Plain(B)), None),
     ["first.first", "first.second.first", "first.second.second", "second"]),
    (Checked(A), ["first", "twice"]),
    (Spaced(A, B), ["y", "x"]),
    (Output(A, (B, A)), ["pooled", "logits", "hidden.0", "hidden.1"]),
    (Listed([A, Plain(B)]), ["0", "1.first", "1.second"]),
    (Tupled([A, B]), ["0", "1"]),
    (UserDict({"a": A}), ["data.a"]),
    (Plain(A, [torch.float32, Colour.RED, Count.ONE, 1j, Tensor, b"x"]), ["first"]),
    (Plain([], {}), []),
]  # fmt: skip


@pytest.mark.parametrize(("result", "names"), RESULTS, ids=lambda item: type(item).__name__)
def test_a_result_is_made_again_and_its_leaves_have_names(result: Any, names: list[str]) -> None:
    leaves, spec = take_apart(result)
    assert [".".join(path) for path in leaf_names(result)] == names
    assert len(leaves) == spec.num_leaves == len(names)
    with warnings.catch_warnings(action="ignore"):  # torch 2.11 warns of its own copies
        copies = copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))
    for each in (spec, *copies):
        again = pytree.tree_unflatten(leaves, each)
        assert type(again) is type(result)
        assert same(again, result)
        assert [".".join(path) for path in leaf_names(again)] == names
    assert vars(again) == vars(result) if isinstance(result, Checked | UserDict) else True


def test_an_output_is_a_dict_of_its_fields_again() -> None:
    leaves, spec = take_apart(Output(A, (B, A)))
    again = pytree.tree_unflatten(leaves, spec)
    assert list(again) == ["logits", "hidden"]
    assert again["logits"] is again.logits is A
    assert again.pooled is None


def test_what_is_changed_in_a_result_is_not_in_the_next_one() -> None:
    leaves, spec = take_apart(Plain(A, {"names": ["a"]}))
    one, other = (pytree.tree_unflatten(leaves, spec) for _ in range(2))
    one.second["names"].append("b")
    assert other.second == {"names": ["a"]}


def test_nothing_is_registered() -> None:
    before = dict(pytree.SUPPORTED_NODES)
    result_leaves((Plain(A), Output(A), Spaced(A, B)))
    assert before == pytree.SUPPORTED_NODES


def test_what_pytree_knows_is_left_to_it() -> None:
    assert not is_foreign(take_apart((A, [{"a": None}, Pair(A, B)]))[1])
    assert is_foreign(take_apart([{"a": Frozen(A)}])[1])


class Cycle:
    def __init__(self) -> None:
        self.inner = [self]


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (lambda: A, "function"),
        ({A}, "set"),
        ((A for _ in range(1)), "generator"),
        (nn.ReLU(), r"torch\.nn\.modules\.activation\.ReLU"),
        (A.numpy(), r"numpy\.ndarray"),
        (A.sum, "builtin_function_or_method"),
    ],
)
def test_what_may_hide_tensors_is_refused(item: Any, named: str) -> None:
    with pytest.raises(
        CaptureError, match=f"holds an object of {named}, in which no tensors can be seen; return"
    ):
        take_apart(Plain(A, item))


def test_what_holds_itself_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"test_results\.Cycle that holds itself; return"):
        take_apart(Cycle())


def test_a_class_that_was_registered_without_keys_has_its_own_names() -> None:
    class Known:
        def __init__(self, wide: Any, deep: Any) -> None:
            self.deep, self.wide = deep, wide

    pytree.register_pytree_node(
        Known, lambda item: ([item.wide, item.deep, 7], None), lambda held, _: Known(*held[:2])
    )
    try:
        assert leaf_names([Known(A, {"x": B})]) == [("0", "wide"), ("0", "deep", "x"), ("0", "2")]
    finally:
        pytree._deregister_pytree_node(Known)
