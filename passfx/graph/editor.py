"""The only writer of a graph: every edit is proposed, certified, and then committed or undone.

An edit leaves the old nodes in place beside the new ones until its certificate holds, so undoing
it is erasing what was added. Constants are never overwritten: a fold attaches a new tensor and the
one new node reads it, so weights shared between layers stay what they were.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.traceback import NodeSource, NodeSourceAction

from passfx.graph.query import attribute, is_constant, module_path, tensor, value
from passfx.graph.shapes import same_type
from passfx.record import Refusal, Rewrite


def refuse(node: Node, reason: str) -> Refusal:
    """A refusal at `node`."""
    return Refusal(node.name, module_path(node), reason)


def beside(node: Node, name: str) -> str:
    """The path of a tensor of this name in the module that the node was traced in."""
    path = module_path(node)
    return f"{path}.{name}" if path else name


@dataclass(frozen=True)
class Match:
    """What a pass found: the edit's place, the nodes it replaces, and a sentence for the report.

    `nodes` is the region that the certificate runs, in topological order. What is new is inserted
    before `at`: the region's last node, or its first where the users of several are repointed.
    `weighed` says that the pass has weighed already what the file grows by.
    `meant` is what numbers of the old nodes are roundings of (constant → tensor, call → arguments):
    the certificate runs them with that, after it has seen that it rounds to them.
    """

    at: Node
    nodes: tuple[Node, ...]
    what: str
    data: Any = None
    any_size: bool = True
    weighed: bool = False
    meant: Mapping[Node, Any] = field(default_factory=dict)


@dataclass
class Edit:
    """An edit in progress: what it added, and which old values the new ones replace.

    `refused` is why it is given up before it is certified.
    """

    match: Match
    added: list[Node] = field(default_factory=list)
    exact: dict[Node, Tensor] = field(default_factory=dict)
    replacements: dict[Node, Node] = field(default_factory=dict)
    refused: str | None = None
    _sources: list[NodeSource] | None = None

    @property
    def frontier(self) -> list[Node]:
        """What is read from outside, in topological order; constants are not among it."""
        nodes = {*self.match.nodes, *self.added}
        reads = {read for node in nodes for read in node.all_input_nodes}
        reads.update(self.replacements.values())
        return sorted(read for read in reads - nodes if read.op != "get_attr")

    @cached_property
    def first_of(self) -> dict[Any, Node]:
        """The first old node of each operator, which a new one of that operator continues."""
        return {old.target: old for old in reversed(self.match.nodes)}

    def sources(self, pass_name: str) -> list[NodeSource]:
        """Where new nodes come from: nodes of the captured graph, however often rewritten since."""
        if self._sources is None:
            by = f"{_OURS}{pass_name}", NodeSourceAction.REPLACE
            found: dict[str, NodeSource] = {}
            for old in self.match.nodes:
                own: list[NodeSource] = old.meta.get("from_node") or []
                is_new = bool(own) and own[0].pass_name.startswith(_OURS)
                found |= {item.name: item for item in (own if is_new else [NodeSource(old, *by)])}
            self._sources = list(found.values())[:_MOST_SOURCES]
        return self._sources


@dataclass(frozen=True)
class Certificate:
    """The outcome of a local proof: the largest relative error, and the failure if there is one.

    `inputs`: the values of `Edit.frontier` that show the failure, where there are such.
    """

    error: float | None
    failure: str | None = None
    inputs: tuple[Any, ...] | None = None


Certify = Callable[[Edit], Certificate]
Undone = Callable[[Edit, Certificate], None]


class Editor:
    """Edits one graph module and records what it did; `modified` is derived from the record.

    `undone` is told of every edit whose certificate fails, while its nodes are still there.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        pass_name: str,
        certify: Certify,
        undone: Undone | None = None,
    ) -> None:
        self.graph_module = graph_module
        self.rewrites: list[Rewrite] = []
        self._refusals: dict[Refusal, None] = {}
        self._names: dict[str, int] = {}
        self._pass_name = pass_name
        self._certify = certify
        self._undone = undone
        self._edit: Edit | None = None

    @property
    def graph(self) -> Graph:
        """The graph that is edited."""
        return self.graph_module.graph

    @property
    def modified(self) -> bool:
        """Whether any edit was committed."""
        return bool(self.rewrites)

    @property
    def refusals(self) -> list[Refusal]:
        """What had the right shape and was unsafe, each told once."""
        return list(self._refusals)

    def refuse(self, refusal: Refusal) -> None:
        """Record a refusal once."""
        self._refusals[refusal] = None

    @contextmanager
    def edit(self, match: Match) -> Iterator[Edit]:
        """Open an edit at `match.at`; on leaving, certify it and commit or undo it."""
        edit = self._edit = Edit(match)
        try:
            with self.graph.inserting_before(match.at):
                yield edit
            if edit.refused is not None:
                self._undo(edit)
                self.refuse(refuse(match.at, edit.refused))
                return
            failure = self._type_change(edit)
            certificate = Certificate(None, failure) if failure else self._certify(edit)
            if certificate.failure is not None and self._undone is not None:
                self._undone(edit, certificate)
        except BaseException:
            self._undo(edit)
            raise
        finally:
            self._edit = None
        if certificate.failure is None:
            self._commit(edit, certificate.error)
        else:
            self._undo(edit)
            undone = refuse(match.at, f"undone: {certificate.failure}")
            self.refuse(replace(undone, undone=True))

    def call(self, target: OpOverload, *args: Any, **kwargs: Any) -> Node:
        """Insert an operator call in the open edit and infer its metadata."""
        fake_args, fake_kwargs = map_arg((args, kwargs), value)
        # Without the Python dispatcher ATen infers no symbolic sizes of an interpolation.
        with _fake_mode(self.graph), enable_python_dispatcher(), torch.no_grad():
            fake = target(*fake_args, **fake_kwargs)
        name = target.overloadpacket.__name__
        return self._insert(fake, "call_function", target, args, kwargs, name)

    def again(self, node: Node, new: Mapping[Node, Node | None]) -> Node:
        """Insert a node's operator once more, with some of the nodes that it reads replaced."""
        assert isinstance(node.target, OpOverload)
        args, kwargs = map_arg((node.args, node.kwargs), lambda read: new.get(read, read))
        return self.call(node.target, *args, **kwargs)

    def item(self, parts: Node, index: int) -> Node:
        """Insert the reading of one result of an operator that has several, such as a split."""
        fake = value(parts)[index]
        return self._insert(fake, "call_function", operator.getitem, (parts, index))

    def constant(self, exact: Tensor, dtype: torch.dtype, name: str) -> Node:
        """Attach a tensor, rounded once to `dtype`, and insert the node that reads it.

        `exact` keeps its full precision for the certificate. `name` is the dotted path to take; a
        number is appended where it is in use.
        """
        edit = self._open_edit()
        tensor = exact.detach().to(dtype).contiguous()
        target = self._attach(name, tensor)
        fake = _fake_mode(self.graph).from_tensor(tensor, static_shapes=True)
        node = self._insert(fake, "get_attr", target)
        edit.exact[node] = exact.detach()
        node.meta[_WANTED_NAME] = name
        return node

    def finish(self) -> None:
        """Detach constants that no node reads, give new ones the names this frees, recompile."""
        used = {
            f"{path}.{node.target}".removeprefix(".")
            for path, module in self.graph_module.named_modules()
            if isinstance(module, GraphModule)  # the module itself, and the branches of conditions
            for node in module.graph.find_nodes(op="get_attr")
        }
        for path, module in self.graph_module.named_modules():
            tensors = [name for name, item in vars(module).items() if isinstance(item, Tensor)]
            for name in [*module._parameters, *module._buffers, *tensors]:
                if f"{path}.{name}".removeprefix(".") not in used:
                    delattr(module, name)
        readers: dict[str, list[Node]] = {}
        for node in self.graph.find_nodes(op="get_attr"):
            readers.setdefault(str(node.target), []).append(node)
        self._names.clear()
        for current, nodes in readers.items():
            given = (node.meta[_WANTED_NAME] for node in nodes if _WANTED_NAME in node.meta)
            wanted = next((name for name in given if name not in used), None)
            if wanted is None:
                continue
            renamed = self._attach(wanted, attribute(self.graph_module, current))
            used.add(renamed)
            for reader in nodes:
                reader.target = renamed
            parent, _, name = current.rpartition(".")
            delattr(self.graph_module.get_submodule(parent), name)
        self.graph_module.recompile()

    def _open_edit(self) -> Edit:
        assert self._edit is not None, "the graph is only written inside an edit"
        return self._edit

    def _insert(self, fake: Any, *made: Any) -> Node:
        """Add a node, with its value, and the module and line of the old node it continues."""
        edit = self._open_edit()
        node = self.graph.create_node(*made)
        edit.added.append(node)
        origin = edit.first_of.get(node.target, edit.match.at)
        node.meta["val"] = fake
        for key in ("nn_module_stack", "stack_trace"):
            if key in origin.meta:
                node.meta[key] = origin.meta[key]
        node.meta["from_node"] = edit.sources(self._pass_name)
        return node

    def _type_change(self, edit: Edit) -> str | None:
        for old, new in edit.replacements.items():
            if tensor(old) is not None and not same_type(old, new):
                return f"{old.name} is {_type(old)}, its replacement {new.name} is {_type(new)}"
        return None

    def _commit(self, edit: Edit, error: float | None) -> None:
        """Repoint, then erase the nodes without users, and the constants that only they read."""
        for user in {user: None for old in edit.replacements for user in old.users}:
            # All at once, because a node that reads many of them is written anew each time.
            new = map_arg((user.args, user.kwargs), lambda old: edit.replacements.get(old, old))
            user.args, user.kwargs = new
        removed: list[str] = []
        for node in reversed(edit.match.nodes):
            if node.users or node.op == "placeholder" or node._erased:
                continue
            constants = [read for read in node.all_input_nodes if is_constant(read)]
            self.graph.erase_node(node)
            removed.append(node.name)
            for read in constants:
                if not read.users:
                    self.graph.erase_node(read)
        added = tuple(node.name for node in edit.added if node.op != "get_attr")
        at, what = edit.match.at, edit.match.what
        names = tuple(reversed(removed)), added
        self.rewrites.append(Rewrite(at.name, module_path(at), what, *names, error))

    def _undo(self, edit: Edit) -> None:
        for node in reversed(edit.added):
            self.graph.erase_node(node)

    def _attach(self, path: str, tensor: Tensor) -> str:
        """Register a tensor under this path, or with the first number that is free after it."""
        module: torch.nn.Module = self.graph_module
        *parents, name = path.split(".")
        for part in parents:
            if not isinstance(getattr(module, part, None), torch.nn.Module):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        unique, number = name, self._names.get(path, 1)
        while hasattr(module, unique):
            unique, number = f"{name}_{number}", number + 1
        self._names[path] = number
        module.register_buffer(unique, tensor)
        return ".".join([*parents, unique])


_WANTED_NAME = "passfx_name"
_OURS = "passfx."
_MOST_SOURCES = 64


def _fake_mode(graph: Graph) -> FakeTensorMode:
    for node in graph.nodes:
        fake = tensor(node)
        if fake is not None and hasattr(fake, "fake_mode"):
            return fake.fake_mode  # type: ignore[no-any-return]
    raise AssertionError("a captured graph has fake values")


def _type(node: Node) -> str:
    fake = tensor(node)
    return "no tensor" if fake is None else f"{fake.dtype} {tuple(fake.shape)}"
