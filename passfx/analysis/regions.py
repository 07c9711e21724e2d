"""The cheapest exact cover of a graph's affine nodes.

Every affine node gets candidates: its value as one affine form of an earlier node, its source,
with the span of nodes that the form replaces. A candidate is made from those of the node's inputs,
by composition, or by adding two forms of one source, wherever that is exact; so a branch that is
dear by itself stays in play until a sum makes it free. A candidate can replace its span if no
inner value is read outside it. From the inputs on, each node keeps the cheapest way to come into
being; from the results back, the ways that are needed are the cover.

A node keeps at most `_LIMIT` candidates, one a source, of spans of at most `_SPAN` nodes, so the
work is O(nodes · _LIMIT) shape compositions and O(nodes · _LIMIT · _SPAN) set operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import ops
from torch.fx import Graph, Node

from passfx.analysis.cost import Profile, form_seconds, node_seconds
from passfx.analysis.forms import Form, add, compose, forms, identity_form, spatial_sizes
from passfx.graph.query import arguments, is_call, is_constant, same_type, tensor

aten = ops.aten

_MOVES = (aten.constant_pad_nd, aten.pad, aten.slice)
_NAMED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)

_LIMIT = 16
_SPAN = 64


@dataclass(frozen=True)
class Candidate:
    """A node as one form of a source.

    Attributes:
        form: the node's value as a form of `form.source`.
        span: the nodes that the form replaces, the node itself included.
        any_size: whether the form is exact for every spatial size, not only for the captured one.
    """

    form: Form
    span: frozenset[Node]
    any_size: bool

    @property
    def key(self) -> tuple[Node, int]:
        """Candidates of one key can be added."""
        return self.form.source, self.form.axes


@dataclass(frozen=True)
class Plan:
    """How a node comes into being: by its own operator, or by a candidate's."""

    seconds: float
    unit: float
    shared: frozenset[Node]
    candidate: Candidate | None


@dataclass(frozen=True)
class Cover:
    """The chosen candidates, last node first, and why others were not taken."""

    chosen: tuple[tuple[Node, Candidate], ...]
    inexact: tuple[tuple[Node, str], ...]
    costly: tuple[tuple[Node, str], ...]


def cheapest_cover(graph: Graph, profile: Profile) -> Cover:
    """The cover of a graph's affine nodes that takes the least predicted time."""
    candidates: dict[Node, list[Candidate]] = {}
    plans: dict[Node, Plan] = {}
    inexact: list[tuple[Node, str]] = []
    costly: list[tuple[Node, str]] = []
    for node in graph.nodes:
        found = list(_candidates(node, candidates, inexact))
        if found:
            candidates[node] = _prune(found)
            plans[node] = _plan(node, candidates[node], plans, profile)
    chosen: list[tuple[Node, Candidate]] = []
    needed: set[Node] = set()
    for node in reversed(graph.nodes):
        plan = plans.get(node)
        if plan is None:
            needed.update(node.all_input_nodes)
        elif node in needed:
            if plan.candidate is None:
                needed.update(node.all_input_nodes)
            else:
                needed.add(plan.candidate.form.source)
                chosen.append((node, plan.candidate))
            reason = _cost_reason(node, plan, candidates[node], profile)
            if reason:
                costly.append((node, reason))
    return Cover(tuple(chosen), tuple(inexact), tuple(costly))


def _candidates(
    node: Node, known: dict[Node, list[Candidate]], inexact: list[tuple[Node, str]]
) -> Iterator[Candidate]:
    for form in forms(node):
        for before in _of(form.source, form.axes, known):
            sizes = spatial_sizes(before.form.source, form.axes)
            failure = before.form.geometry.then_failure(form.geometry, sizes)
            if failure is None:
                unsized = before.form.geometry.then_failure(form.geometry, (None,) * form.axes)
                yield Candidate(
                    compose(before.form, form),
                    before.span | {node},
                    before.any_size and unsized is None,
                )
            elif len(before.span) == 1:
                inexact.append((node, failure))
    if is_call(node, aten.add, aten.sub):
        yield from _sums(node, known)


def _of(node: Node, axes: int, known: dict[Node, list[Candidate]]) -> Iterator[Candidate]:
    """A node as itself, then as what its candidates say."""
    own = identity_form(node, axes)
    if own is not None:
        yield Candidate(own, frozenset(), True)
    yield from (item for item in known.get(node, ()) if item.form.axes == axes)


def _sums(node: Node, known: dict[Node, list[Candidate]]) -> Iterator[Candidate]:
    bound = arguments(node)
    left, right = bound["self"], bound["other"]
    alpha = bound["alpha"]
    operands = isinstance(left, Node) and isinstance(right, Node) and isinstance(alpha, int | float)
    if not operands or is_constant(left) or is_constant(right):
        return
    if not (same_type(node, left) and same_type(node, right)):
        return
    scale = float(alpha) * (-1 if is_call(node, aten.sub) else 1)
    fake = tensor(node)
    assert fake is not None
    for axes in {0, max(0, fake.ndim - 2)}:
        by_key = {item.key: item for item in _of(right, axes, known)}
        for a in _of(left, axes, known):
            b = by_key.get(a.key)
            if b is None:
                continue
            sizes = spatial_sizes(a.form.source, axes)
            if a.form.geometry.plus_failure(b.form.geometry, sizes) is None:
                unsized = a.form.geometry.plus_failure(b.form.geometry, (None,) * axes)
                any_size = a.any_size and b.any_size and unsized is None
                yield Candidate(add(a.form, b.form, scale), a.span | b.span | {node}, any_size)


def _prune(found: list[Candidate]) -> list[Candidate]:
    """One candidate a source and layout; forks first, then the nearest."""
    unique = {item.key: item for item in reversed(found) if len(item.span) <= _SPAN}
    ranked = sorted(
        unique.values(), key=lambda item: (len(item.form.source.users) < 2, len(item.span))
    )
    return ranked[:_LIMIT]


def _replaceable(node: Node, candidate: Candidate) -> bool:
    """Whether nothing outside the span reads a value inside it, but for the node's own."""
    return all(
        user in candidate.span
        for inner in candidate.span
        if inner is not node
        for user in inner.users
    )


def _is_shorter(candidate: Candidate) -> bool:
    """Whether the form takes fewer operators than its span; pads and slices stay what they are.

    Padding that differs on the two sides takes a pad besides, and so does padding by name, inside
    its operator; a scale and shift of the last axis of more than two take a product and a sum.
    """
    if all(is_call(node, *_MOVES) for node in candidate.span):
        return False
    geometry, fake = candidate.form.geometry, tensor(candidate.form.source)
    assert fake is not None
    uneven = any(max(0, axis.low) != max(0, axis.high) for axis in geometry.axes)
    affine = geometry.biased and geometry.groups == geometry.channels_out and fake.ndim > 2
    named = sum(is_call(node) and node.target in _NAMED for node in candidate.span)
    return len(candidate.span) + named > 1 + (uneven if geometry.axes else affine)


def _plan(
    node: Node, candidates: list[Candidate], plans: dict[Node, Plan], profile: Profile
) -> Plan:
    own = node_seconds(node, profile)
    best = _depending(own, node, node.all_input_nodes, plans, None)
    for candidate in candidates:
        if _is_shorter(candidate) and _replaceable(node, candidate):
            unit = form_seconds(candidate.form.geometry, candidate.form.source, node, profile)
            plan = _depending(unit, node, [candidate.form.source], plans, candidate)
            if plan.seconds < best.seconds:
                best = plan
    return best


def _depending(
    unit: float,
    node: Node,
    inputs: list[Node],
    plans: dict[Node, Plan],
    candidate: Candidate | None,
) -> Plan:
    """The time of an operator and of what it needs, a value that two inputs share counted once."""
    seconds, shared = unit, frozenset[Node]()
    for read in inputs:
        if (plan := plans.get(read)) is None:
            continue
        common = shared & plan.shared
        seconds += plan.seconds - max((plans[item].seconds for item in common), default=0.0)
        shared |= plan.shared
    if len(node.users) > 1:
        shared |= {node}
    return Plan(seconds, unit, shared, candidate)


def _cost_reason(
    node: Node, plan: Plan, candidates: list[Candidate], profile: Profile
) -> str | None:
    """The figures of the nearest exact collapse that was too dear, if there is one."""
    taken = plan.candidate.span if plan.candidate else frozenset({node})
    for candidate in sorted(candidates, key=lambda item: len(item.span)):
        if candidate.span > taken and _is_shorter(candidate) and _replaceable(node, candidate):
            sizes = spatial_sizes(candidate.form.source, candidate.form.axes)
            if None in sizes:
                return None
            macs = candidate.form.geometry.macs([size for size in sizes if size is not None])
            unit = form_seconds(candidate.form.geometry, candidate.form.source, node, profile)
            return (
                f"{len(candidate.span)} operators as one would take {macs:,} MACs and "
                f"{unit * 1e6:.1f} µs, more than they take apart"
            )
    return None
