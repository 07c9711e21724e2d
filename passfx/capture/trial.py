"""Which bounds of the tracer are rules: decided by running the model and the graph beside it.

The tracer also notes what does not matter: that a size is not 1, so that a layout is unambiguous,
or that one stride is less than another. A bound that it made by itself is dropped where the graph,
at sizes outside it, gives the results of the model and every node has the sizes that its symbols
say. One that a comparison in the user's code made is a rule, unless all of the few sizes outside it
were tried.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from passfx.capture.bounds import Bound, Bounds, Point
from passfx.capture.dynamic import Dims, Inputs
from passfx.capture.rules import Origin, SizeRule, said
from passfx.capture.state import evaluating
from passfx.errors import quiet
from passfx.graph.query import source_line, tensors, value
from passfx.graph.results import result_leaves

_TRIES = 4  # sizes outside a bound that are tried
_FEW = 8  # so many are all of them
_DENSE, _COARSE = 128, 12  # sizes of a symbol alone, and of two together, that are looked at
_LARGE = 2**18  # elements of the inputs, where the example has less
_LARGEST = 2**22  # … where nothing smaller lies outside a bound
_AGREEMENT = 1e-3  # of the largest value: another way through a model differs by more

Outcome = tuple[str, str | None]
Run = Callable[[list[Any]], Sequence[Any]]


def find_rules(
    graph_module: GraphModule,
    program: ExportedProgram,
    model: torch.nn.Module | ExportedProgram,
    inputs: Inputs,
    dims: Dims,
) -> tuple[SizeRule, ...]:
    """The rules of a captured program.

    Args:
        program: whose ranges they are.
        model: what it was captured from; a module is run at other sizes, and left as it was.
        inputs: the example inputs.
        dims: the dynamic dimensions that the user declared.

    Raises:
        CaptureError: an exported program checks something that cannot be read.
    """
    flat = pytree.tree_leaves(inputs)
    bounds = Bounds(graph_module, flat)
    if not bounds.places:
        return ()
    if isinstance(model, ExportedProgram):
        return _Search(bounds).rules(bounds.of_program(model))
    spec = pytree.tree_structure(inputs)
    trial = Trial(bounds, _runner(model, spec), graph_module)
    return _Search(bounds, trial).rules(bounds.all(program, dims, flat))


def _runner(model: torch.nn.Module, spec: pytree.TreeSpec) -> Run:
    """A model in eval mode as a function of flat inputs, which leaves it as it was."""

    def run(flat: list[Any]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(flat, spec)
        buffers = {name: item.clone() for name, item in model.named_buffers()}
        with evaluating(model):
            return result_leaves(torch.func.functional_call(model, buffers, args, kwargs))

    return run


def later_rules(
    bounds: Bounds,
    known: Sequence[SizeRule],
    captured: GraphModule,
    rewritten: GraphModule,
) -> tuple[SizeRule, ...]:
    """The `known` rules of a captured graph, and what rewriting it added: mostly nothing.

    Args:
        bounds: of the captured graph, made before it was rewritten.
    """
    made = [*bounds.guards(bounds.made)] if bounds.places else []
    if not made:
        return tuple(known)

    def run(inputs: list[Any]) -> Any:
        return Interpreter(captured).run(*inputs, enable_io_processing=False)

    return (*known, *_Search(bounds, Trial(bounds, run, rewritten), known).rules(made))


@dataclass
class Trial:
    """A model and its graph beside each other, at other sizes than the example's.

    Attributes:
        run: the model as a function of flat inputs.
        outcomes: by the sizes of all places: "same"; "graph" where the model has results and the
            graph has not, or others, or a node of other sizes than its symbols say, with the line
            of that node; "model" where the model has none.
    """

    bounds: Bounds
    run: Run
    graph_module: GraphModule
    outcomes: dict[Point, Outcome] = field(default_factory=dict)

    def runnable(self, points: Collection[Point]) -> list[Point]:
        """Those at which the inputs are not too large to be run, or else the first that can be."""
        example = 4 * self.bounds.elements(self.bounds.example)

        def allowed(most: int) -> list[Point]:
            return [point for point in points if self.bounds.elements(point) <= max(example, most)]

        return allowed(_LARGE) or allowed(_LARGEST)[:1]

    def outcome(self, point: Point, *, fits: bool) -> Outcome:
        """What happens at some sizes; where the graph has formulas for them, nodes must fit too."""
        if point not in self.outcomes:
            with torch.no_grad(), quiet():
                self.outcomes[point] = self._compare(point, fits)
        return self.outcomes[point]

    def _compare(self, point: Point, fits: bool) -> Outcome:
        inputs = self.bounds.inputs(point, torch.Generator().manual_seed(0))
        try:
            wanted = tensors(self.run(copy.deepcopy(inputs)))
        except Exception:
            return "model", None
        checked = _Checked(self.graph_module, self.bounds, point if fits else None)
        try:
            found = tensors(checked.run(*inputs, enable_io_processing=False))
        except Exception:
            return "graph", checked.line
        alike = len(wanted) == len(found) and all(map(_alike, found, wanted))
        return ("same", None) if alike else ("graph", None)


class _Checked(Interpreter):
    """Runs a graph, and fails at the first node whose sizes are not those that its symbols say."""

    def __init__(self, graph_module: GraphModule, bounds: Bounds, point: Point | None) -> None:
        super().__init__(graph_module)
        self.bounds = bounds
        self.values = [item.read(point) for item in bounds.symbols.values()] if point else None
        self.line: str | None = None

    def run_node(self, n: Node) -> Any:
        """One node, whose tensors are compared with its fake ones."""
        self.line = source_line(n)
        result = super().run_node(n)
        told, given = (tensors(pytree.tree_leaves(item)) for item in (value(n), result))
        if n.op != "output" and not all(map(self._fits, told, given)):
            raise ValueError(f"{n.name} has other sizes than its symbols say")
        return result

    def _fits(self, told: torch.Tensor, given: torch.Tensor) -> bool:
        return all(map(self._is_size, told.shape, given.shape))

    def _is_size(self, told: int | torch.SymInt, given: int) -> bool:
        if isinstance(told, int):
            return told == given or self.values is None
        expr = told.node.expr
        if self.values is None or not expr.free_symbols <= self.bounds.symbols.keys():
            return True
        return self.bounds.size(expr, self.values) == given


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    finite = b.abs()[b.isfinite()].double()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=_AGREEMENT * largest, equal_nan=True)


@dataclass
class _Search:
    """The bounds that were found to be rules; without a trial, all of them are."""

    bounds: Bounds
    trial: Trial | None = None
    known: Sequence[SizeRule] = ()
    kept: list[tuple[Bound, Origin, str | None]] = field(default_factory=list)

    def rules(self, found: Sequence[Bound]) -> tuple[SizeRule, ...]:
        """Those of `found` that say more than the others, as rules."""
        points = [*self._points(found)]
        first = ("declared", "program")
        ordered = sorted(
            found, key=lambda bound: (bound.origin not in first, not bound.is_shape, not bound.line)
        )
        for bound in ordered:
            outside = [point for point in points if not bound.holds(point) and self._holds(point)]
            if outside and (origin := self._origin(bound, outside)):
                self.kept.append(origin)
        for item in reversed(self.kept):
            others = [other for other, _, _ in self.kept if other is not item[0]]
            if not item[0].is_shape and all(
                item[0].holds(point) or not all(other.holds(point) for other in others)
                for point in points
            ):
                self.kept.remove(item)
        return tuple(self._rule(*item) for item in self.kept)

    def _holds(self, point: Point) -> bool:
        sizes = dict(zip(self.bounds.places, point, strict=True))
        return all(bound.holds(point) for bound, _, _ in self.kept) and all(
            rule.holds(sizes.__getitem__) for rule in self.known
        )

    def _points(self, found: Sequence[Bound]) -> Iterator[Point]:
        """Sizes to look at: one symbol changed, two, and single places where shapes forbid it."""
        numbers = {number for bound in found for number in bound.numbers}
        near = {number + step for number in numbers for step in (-1, 0, 1)}
        example = [item.read(self.bounds.example) for item in self.bounds.symbols.values()]
        seen: set[Point] = set()

        def tried(values: Sequence[int]) -> Iterator[Point]:
            point = self.bounds.point(values)
            if min(values) >= 0 and min(point) >= 0 and point not in seen:
                seen.add(point)
                yield point

        for place, size in enumerate(example):
            wide = {*range(max(_DENSE, 2 * size)), 3 * size, 4 * size, *near}
            for other in sorted(wide):
                yield from tried([*example[:place], other, *example[place + 1 :]])
        for one, two in combinations(range(len(example)), 2):
            options = [
                {*range(1, _COARSE), size - 1, size, size + 1, 2 * size}
                for size in (example[one], example[two])
            ]
            for pair in product(*options):
                values = list(example)
                values[one], values[two] = pair
                yield from tried(values)
        for place, size in enumerate(self.bounds.example):
            for other in (size + 1, size - 1, 2 * size):
                point = (*self.bounds.example[:place], other, *self.bounds.example[place + 1 :])
                if point not in seen:
                    seen.add(point)
                    yield point

    def _origin(
        self, bound: Bound, outside: list[Point]
    ) -> tuple[Bound, Origin, str | None] | None:
        """A bound as a rule, if it is one, by what happens at sizes outside it."""
        if bound.origin or self.trial is None:
            return bound, bound.origin or "program", bound.line
        is_empty = all(0 in point for point in outside)
        distance = {
            point: sum(abs(a - b) for a, b in zip(point, self.bounds.example, strict=True))
            for point in outside
            if is_empty or 0 not in point
        }
        nearest: dict[tuple[int, ...], Point] = {}
        for point in sorted(distance, key=distance.__getitem__):
            nearest.setdefault(tuple(point[number] for number in bound.used), point)
        runnable = self.trial.runnable(nearest.values())
        is_all = len(runnable) == len(nearest) <= _FEW
        known = [point for point in distance if point in self.trial.outcomes]
        chosen = [*known, *runnable[: _TRIES - 1], *runnable[-1:]][: max(_TRIES, len(known))]
        if is_all and bound.line:
            chosen = runnable
        happened = set()
        for point in chosen:
            what, line = self.trial.outcome(point, fits=not bound.is_shape)
            if what == "graph":
                return bound, "empty" if is_empty else "traced", bound.line or line
            happened.add(what)
        if chosen and ("same" not in happened or bound.is_shape):
            # A size of 1 that is broadcast is "same", and still not what the shapes say.
            return None if is_empty else (bound, "model", bound.line)
        if not chosen or (bound.line and not is_all):
            return bound, "traced", bound.line
        return None

    def _rule(self, bound: Bound, origin: Origin, line: str | None) -> SizeRule:
        places = tuple(self.bounds.places[number] for number in bound.used)
        return SizeRule(places, bound.condition, said(bound.local, places), origin, line)
