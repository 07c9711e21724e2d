"""The cheapest exact cover of a graph's affine nodes.

Every affine node gets candidates: its value as one affine form of an earlier node, its source,
with the span of nodes that the form replaces. A candidate is made from those of the node's inputs,
by composition, or by adding or stacking forms of one source, wherever that is exact; so a branch
that is dear by itself stays in play until a sum makes it free. Of a scale and shift before a border
of zeros the scale alone is composed, and the shift is added to the source. A candidate can replace
its span if no inner value is read outside it, or if whatever reads that value can do without it as
well. From the inputs on, each node keeps the cheapest way to come into being; from the results
back, the ways that are needed are the cover.

A node keeps at most `_LIMIT` candidates, one a source, of spans of at most `_SPAN` nodes, and knows
at most twice as many values that its way shares with others, so the work is O(nodes · _LIMIT) shape
compositions and O(nodes · _LIMIT · _SPAN) set operations.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import nlargest
from itertools import count
from operator import getitem

from torch.fx import Graph, Node

from passfx.algebra.geometry import Sizes
from passfx.analysis import leaves
from passfx.analysis.candidates import Candidate
from passfx.analysis.cost import node_seconds
from passfx.analysis.forms import Form, add, compose, identity_form, ranks, spatial_sizes, stack
from passfx.analysis.growth import Addition, too_large
from passfx.graph.ops import aten
from passfx.graph.query import arguments, is_call, is_constant
from passfx.graph.shapes import dtypes, hint, known_tensor, nbytes, same_type
from passfx.target import Profile

_LIMIT = 16
_SPAN = 64
_TURNS = 8


@dataclass(frozen=True)
class Way:
    """How a node comes into being: by its own operator, or by a candidate's."""

    seconds: float
    shared: frozenset[Node]
    candidate: Candidate | None


@dataclass(frozen=True)
class Cover:
    """The chosen candidates, last node first, and why others were not taken."""

    chosen: tuple[Candidate, ...]
    refused: tuple[tuple[Node, str], ...]


def cheapest_cover(graph: Graph, profile: Profile) -> Cover:
    """The cover of a graph's affine nodes that takes the least predicted time.

    What would make the file larger by more than its gain is left out, and the cover found anew.
    """
    search = _Search(profile)
    for node in graph.nodes:
        search.find(node)
    for turn in count():
        cover = search.cover(graph)
        refused = too_large(item.addition(profile) for item in cover.chosen)
        if not refused:
            return cover
        search.excluded |= {
            (item.at, frozenset(item.nodes)): reason
            for item, reason in refused.items()
            if turn >= _TURNS or item in _largest(refused)
        }
    raise AssertionError("a cover without large forms is found")


def _largest(additions: Iterable[Addition]) -> set[Addition]:
    """Of those whose largest constant is the same one, the one of the most operators.

    Without it the others may turn out equal, as those of a layer that is called several times.
    """
    largest = {
        max(item.constants, key=nbytes, default=None): item
        for item in sorted(additions, key=lambda item: len(item.nodes))
    }
    return set(largest.values())


class _Search:
    """The state of one search: candidates, then ways, then the cover."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.candidates: dict[Node, list[Candidate]] = {}
        self.ways: dict[Node, Way] = {}
        self.bypassed: set[Node] = set()
        self.excluded: dict[tuple[Node, frozenset[Node]], str] = {}
        self.refused: list[tuple[Node, str]] = []

    def find(self, node: Node) -> None:
        """The candidates of a node: one a source and layout; forks first, then the nearest."""
        forms = leaves.read(node)
        composed = () if isinstance(forms, str) else self._compositions(node, forms)
        found = [*composed, *self._joins(node)]
        unique = {item.key: item for item in reversed(found) if len(item.span) <= _SPAN}
        if unique:
            nearest = sorted(unique.values(), key=lambda item: len(item.span))
            nearest.sort(key=lambda item: len(item.form.source.users) < 2)
            self.candidates[node] = nearest[:_LIMIT]
        elif isinstance(forms, str):
            self.refused.append((node, forms))

    def _compositions(self, node: Node, forms: Sequence[Form]) -> Iterator[Candidate]:
        own = {node, *(node.all_input_nodes if node.target is getitem else ())}
        for form in forms:
            for before in self._of(form.source, form.rank):
                check = partial(before.form.geometry.then_failure, form.geometry)
                failure, any_size = _exactness(check, before.form.source, form.rank)
                if failure is None:
                    any_size = any_size and before.any_size and form.any_size
                    whole, span = compose(before.form, form), before.span | own
                    yield Candidate(node, whole, span, any_size, before.first)
                elif len(before.span) == 1:
                    self.refused.append((node, failure))
                elif scaled := _scale_alone(before, form):
                    span = before.span | own
                    whole = compose(scaled, form)
                    yield Candidate(node, whole, span, form.any_size, before.form)

    def _of(self, node: Node, rank: int) -> Iterator[Candidate]:
        """A node as itself, then as what its candidates say."""
        own = identity_form(node, rank)
        if own is not None:
            yield Candidate(node, own, frozenset(), True)
        yield from (item for item in self.candidates.get(node, ()) if item.form.rank == rank)

    def _joins(self, node: Node) -> Iterator[Candidate]:
        """Sums and stacks of forms of one source."""
        parts, scales, dim = _joined(node)
        for rank in ranks(node) if parts else ():
            if dim is not None and dim != (1 if rank else known_tensor(node).ndim - 1):
                continue
            options = [{item.key: item for item in self._of(part, rank)} for part in parts]
            shared = (key for key in options[0] if all(key in option for option in options))
            joined = (_join(node, [option[key] for option in options], scales) for key in shared)
            yield from filter(None, joined)

    def plan(self, node: Node) -> None:
        """The cheapest way for a node to come into being."""
        if node not in self.candidates:
            return
        shorter = self._shorter(node)
        ways = [self._way(node, item) for item in (None, *filter(self._is_replaceable, shorter))]
        best = self.ways[node] = min(ways, key=lambda way: way.seconds)
        shared = best.candidate is None and len(node.users) > 1
        if shared and all(self._does_without(user, node) for user in node.users):
            self.bypassed.add(node)

    def _shorter(self, node: Node) -> list[Candidate]:
        """The candidates that are worth a thought: shorter, and not too large for the file."""
        found = (item for item in self.candidates.get(node, ()) if item.is_shorter)
        return [item for item in found if (node, item.span) not in self.excluded]

    def _is_replaceable(self, candidate: Candidate) -> bool:
        return candidate.readers().keys() <= self.bypassed

    def _does_without(self, user: Node, node: Node) -> bool:
        """Whether a user can take in a node at no cost, as a 1×1 convolution takes a norm."""
        own = node_seconds(user, self.profile)
        return any(
            item.span == {node, user} and item.seconds(self.profile) <= own
            for item in self._shorter(user)
        )

    def _way(self, node: Node, candidate: Candidate | None) -> Way:
        """The time of an operator and of what it needs, a value that two inputs share once."""
        inputs = [candidate.form.source] if candidate else node.all_input_nodes
        profile, shared = self.profile, frozenset[Node]()
        seconds = candidate.seconds(profile) if candidate else node_seconds(node, profile)
        for way in (self.ways[read] for read in inputs if read in self.ways):
            common = (self.ways[item].seconds for item in shared & way.shared)
            seconds += way.seconds - max(common, default=0.0)
            shared |= way.shared
        if len(shared) > 2 * _SPAN:  # the nearest are those that branches have in common
            nearest = nlargest(_SPAN, shared, key=lambda item: (self.ways[item].seconds, item))
            shared = frozenset(nearest)
        if len(node.users) > 1:
            shared |= {node}
        return Way(seconds, shared, candidate)

    def cover(self, graph: Graph) -> Cover:
        """From the inputs on the cheapest ways; from the results back, those that are needed."""
        self.ways, self.bypassed = {}, set()
        for node in graph.nodes:
            self.plan(node)
        refused = list(self.refused)
        chosen: list[Candidate] = []
        needed: set[Node] = set()
        for node in reversed(graph.nodes):
            way = self.ways.get(node)
            if way is not None and node not in needed:
                continue
            if way is None or way.candidate is None:
                needed.update(node.all_input_nodes)
            else:
                needed.add(way.candidate.form.source)
                chosen.append(way.candidate)
            if way is not None:
                refused += ((node, reason) for reason in self._left(node, way))
        refused += self._too_large()
        return Cover(tuple(chosen), tuple(sorted(refused, key=lambda item: item[0])))

    def _too_large(self) -> Iterator[tuple[Node, str]]:
        """Of each node the smallest form that was too large for the file."""
        smallest: dict[Node, tuple[int, str]] = {}
        for (node, span), reason in self.excluded.items():
            found = len(span), f"{len(span)} operators as one {reason}"
            smallest[node] = min(found, smallest.get(node, found))
        yield from ((node, sentence) for node, (_, sentence) in smallest.items())

    def _left(self, node: Node, way: Way) -> Iterator[str]:
        """Why the nearest larger collapse was left, if there is one."""
        taken = way.candidate.span if way.candidate else frozenset({node})
        larger = [item for item in self._shorter(node) if item.span > taken]
        for item in sorted(larger, key=lambda item: len(item.span)):
            if self._is_replaceable(item):
                shape = known_tensor(item.form.source).shape
                macs = item.written.geometry.macs(
                    [*map(hint, shape[len(shape) - item.form.rank :])]
                )
                figures = f"{macs:,} MACs and {item.seconds(self.profile) * 1e6:.1f} µs"
                what = f"{len(item.span)} operators as one would take {figures}"
                yield f"{what}, more than they take apart"
                return
            apart = sum(node_seconds(part, self.profile) for part in item.span)
            if len(item.span) == 2 and item.seconds(self.profile) < apart:
                ((inner, users),) = item.readers().items()
                yield f"{inner.name} is also read by {', '.join(user.name for user in users)}"
                return


def _exactness(
    check: Callable[[Sizes], str | None], source: Node, rank: int
) -> tuple[str | None, bool]:
    """Why a form is not exact for the sizes of its source, and whether it is for every size."""
    failure = check(spatial_sizes(source, rank))
    return failure, failure is None and check((None,) * rank) is None


def _scale_alone(before: Candidate, form: Form) -> Form | None:
    """A map of each channel without its shift, where it is that alone that a border keeps."""
    geometry = replace(before.form.geometry, biased=False)
    sizes = spatial_sizes(before.form.source, form.rank)
    if before.first or not geometry.is_pointwise or geometry.then_failure(form.geometry, sizes):
        return None
    exact = before.form.build()
    if not bool(exact.weight.all()):
        return None
    bare = replace(exact, bias=exact.bias.new_zeros(exact.bias.shape))
    return replace(before.form, geometry=geometry, build=lambda: bare)


def _joined(node: Node) -> tuple[list[Node], list[float], int | None]:
    """The parts of a sum, with their factors, or of a concatenation, with its axis."""
    if is_call(node, aten.add, aten.sub):
        left, right, alpha = arguments(node).values()
        alike = same_type(node, left) and same_type(node, right)
        if alike and isinstance(alpha, int | float) and not any(map(is_constant, (left, right))):
            return [left, right], [1.0, float(-alpha if is_call(node, aten.sub) else alpha)], None
    elif is_call(node, aten.cat):
        parts, dim = arguments(node).values()
        out, types = known_tensor(node), dtypes((node, *parts))
        if out.is_floating_point() and len(types) == 1 and not any(map(is_constant, parts)):
            return list(parts), [], dim % out.ndim
    return [], [], None


def _join(node: Node, items: list[Candidate], scales: list[float]) -> Candidate | None:
    """The sum of two candidates of one key, or without factors the stack of many."""
    source, rank, first = items[0].key
    shape, any_size = items[0].form.geometry, all(item.any_size for item in items)
    for item in items[1:]:
        other = item.form.geometry
        failure, at_any_size = _exactness(partial(shape.plus_failure, other), source, rank)
        if failure is not None:
            return None
        any_size &= at_any_size
        shape = shape.plus(other) if scales else shape.beside(other)
    span = frozenset({node}).union(*(item.span for item in items))
    parts = [item.form for item in items]
    form = add(parts[0], parts[1], scales[1]) if scales else stack(parts)
    return Candidate(node, form, span, any_size, first)
