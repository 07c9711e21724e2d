"""What the tracer found out and took for granted about sizes, as formulas of the inputs' sizes.

It keeps them in three places: inputs whose sizes are formulas of one symbol (equal sizes,
multiples), the range of each symbol, and guards, which are what its own comparisons and those of
the model came to.
"""

import ast
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.printers import PythonPrinter

from passfx.capture.dynamic import Dims, resample
from passfx.capture.rules import Origin, Place, compiled, condition_of, satisfied
from passfx.errors import CaptureError
from passfx.graph.query import value
from passfx.graph.shapes import fixed

_ENDLESS = 2**62
_TORCH = Path(torch.__file__).parent
_NODES = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator),
    *(ast.Compare, ast.cmpop, ast.Constant, ast.Load),
)
_CALLS = ("max", "min", "torch.sym_max", "torch.sym_min", "torch.sym_float", "math.floor",
    "math.ceil", "math.trunc")  # fmt: skip


Point = tuple[int, ...]  # a size for each place


@dataclass(frozen=True)
class Bound:
    """A condition that the tracer knows.

    Attributes:
        formula: in p0, p1, … the places of the program.
        origin: "declared" and "program" where that is known before anything is tried.
        line: of the user's code, if a comparison there made it.
        is_shape: whether the sizes of the inputs themselves say it, so that no size outside it can
            be written down.
    """

    formula: str
    origin: Origin | None = None
    line: str | None = None
    is_shape: bool = False

    @cached_property
    def used(self) -> list[int]:
        """The numbers of the places it is about, in the order of the formula."""
        return list(dict.fromkeys(map(int, re.findall(r"\bp(\d+)\b", self.formula))))

    @cached_property
    def local(self) -> str:
        """The formula with the places that it is about as p0, p1, … in their order."""
        order = self.used
        return re.sub(r"\bp(\d+)\b", lambda match: f"p{order.index(int(match[1]))}", self.formula)

    @cached_property
    def numbers(self) -> set[int]:
        """The numbers in the formula, near which it may change."""
        return {int(number) for number in re.findall(r"\b\d+\b", self.formula)}

    @cached_property
    def condition(self) -> str:
        """A function of the sizes of the places it is about."""
        return condition_of(self.local, len(self.used))

    def holds(self, point: Point) -> bool:
        """Whether the sizes of all places fulfil it."""
        return satisfied(self.condition, [point[number] for number in self.used])


@dataclass(frozen=True)
class Symbol:
    """A tracer's symbol s where a place has the size factor · s + offset."""

    place: int
    factor: int = 1
    offset: int = 0

    def read(self, point: Sequence[int]) -> int:
        """Its value at the sizes of all places."""
        return (point[self.place] - self.offset) // self.factor

    @property
    def formula(self) -> Any:
        """Its value as a sympy expression."""
        moved = sympy.Symbol(f"p{self.place}", integer=True) - self.offset
        return moved if self.factor == 1 else FloorDiv(moved, self.factor)


class Bounds:
    """The sizes of a captured program that vary, and all that is known about them."""

    def __init__(self, graph_module: GraphModule, flat: Sequence[Any]) -> None:
        self.flat = flat
        self.places: list[Place] = []
        sizes: list[Any] = []
        for index, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
            given = value(node)
            whole = [(None, given)]
            for axis, size in enumerate(given.shape) if isinstance(given, torch.Tensor) else whole:
                if isinstance(size, torch.SymInt) and fixed(size) is None:
                    self.places.append(Place(index, str(node.target), axis))
                    sizes.append(size)
        self.example = tuple(place.read(flat) for place in self.places)
        self.environment: Any = sizes[0].node.shape_env if sizes else None
        self.made = len(self.environment.guards) if self.environment else 0
        self.symbols: dict[sympy.Symbol, Symbol] = {}
        self._functions: dict[Any, str] = {}
        self._names = _source_names(graph_module, flat, self.places)
        self._said = list(self._bind([size.node.expr for size in sizes]))
        self._sizes = [size.node.expr for size in sizes]

    def _bind(self, sizes: Sequence[Any]) -> Iterator[str]:
        """Read every symbol from a place, one without a factor first; give what is left to say."""
        for number in sorted(range(len(sizes)), key=lambda number: not sizes[number].is_Symbol):
            size, symbols = sizes[number], sizes[number].free_symbols
            if len(symbols) == 1 and not symbols & self.symbols.keys():
                (symbol,) = symbols
                offset, factor = size.subs(symbol, 0), size.coeff(symbol)
                if size != factor * symbol + offset:
                    raise CaptureError(
                        f"{self.places[number]} is traced as {size}, from which {symbol} cannot be "
                        "read; declare that size as a plain Dim, or leave it fixed"
                    )
                self.symbols[symbol] = Symbol(number, int(factor), int(offset))
                if factor != 1:
                    yield f"({_print(sympy.Symbol(f'p{number}') - offset)}) % {factor} == 0"
            else:
                yield f"p{number} == {self._formula(size)}"

    def point(self, values: Sequence[int]) -> Point:
        """The sizes of all places at values of the symbols."""
        return tuple(self.size(expr, values) for expr in self._sizes)

    def _shapes(self, point: Point) -> list[list[int] | None]:
        shapes = [list(item.shape) if hasattr(item, "shape") else None for item in self.flat]
        for place, size in zip(self.places, point, strict=True):
            if place.axis is not None:
                shapes[place.index][place.axis] = size  # type: ignore[index]
        return shapes

    def elements(self, point: Point) -> int:
        """How many elements the inputs have at some sizes."""
        return sum(math.prod(shape) for shape in self._shapes(point) if shape is not None)

    def inputs(self, point: Point, generator: torch.Generator) -> list[Any]:
        """Flat inputs of some sizes, with elements drawn from those of the example."""
        shaped = zip(self.flat, self._shapes(point), strict=True)
        drawn = [
            item if shape is None else resample(item, tuple(shape), generator)
            for item, shape in shaped
        ]
        for place, size in zip(self.places, point, strict=True):
            if place.axis is None:
                drawn[place.index] = size
        return drawn

    def size(self, expr: Any, values: Sequence[int]) -> int:
        """A formula of the symbols at values of all of them."""
        if expr not in self._functions:
            self._functions[expr] = f"lambda {', '.join(map(str, self.symbols))}: {_print(expr)}"
        return int(compiled(self._functions[expr])(*values))

    def all(self, program: ExportedProgram, dims: Dims, flat: Sequence[Any]) -> list[Bound]:
        """Every bound: what the user declared, what shapes say, guards, and ranges.

        Args:
            dims: the dimensions that were declared, with their tensors among `flat`.
        """
        named = {
            number: dim
            for number, place in enumerate(self.places)
            for item, axis, dim in dims
            if item is flat[place.index] and axis == place.axis
        }
        declared = [
            Bound(f"p{number} {sign} {int(end)}", "declared")
            for number, dim in named.items()
            for sign, end in ((">=", getattr(dim, "min", 0)), ("<=", getattr(dim, "max", None)))
            if end and end < _ENDLESS
        ]
        return [*declared, *self._of_shapes(named), *self.guards(), *self._of_ranges(program)]

    def _of_shapes(self, named: Mapping[int, Any]) -> Iterator[Bound]:
        for formula in self._said:
            used = set(Bound(formula).used)
            roots = {_root(named.get(number)) for number in used}
            origin: Origin | None = "declared" if None not in roots and len(roots) == 1 else None
            lines = (line for places, line in self._equations() if used <= places)
            yield Bound(formula, origin, next(lines, None), is_shape=True)

    def _equations(self) -> Iterator[tuple[set[int], str | None]]:
        """The places whose sizes a guard made equal, and its line."""
        places = {
            symbol: self._names[name]
            for symbol, sources in self.environment.var_to_sources.items()
            for name in map(source_name, sources)
            if name in self._names
        }
        for guard in self.environment.guards:
            if self.environment.replace(guard.expr) == sympy.true:
                known = guard.expr.free_symbols & places.keys()
                yield {places[symbol] for symbol in known}, _line(guard)

    def guards(self, start: int = 0) -> Iterator[Bound]:
        """The guards of the tracer, or those that it has made since it had `start` of them."""
        for guard in self.environment.guards[start:]:
            if _chooses_kernel(guard):
                continue
            for expr in (self.environment.replace(guard.expr), guard.expr):
                formula = self._formula(expr)
                if formula not in ("True", None):
                    yield Bound(str(formula), line=_line(guard))
                    break  # the guard itself counts where it made two symbols one

    def _of_ranges(self, program: ExportedProgram) -> Iterator[Bound]:
        for symbol, item in self.symbols.items():
            known = program.range_constraints.get(symbol)
            if known is not None:
                formula = _print(item.formula)
                # What is at least 2 because the tracer took it for granted may be 1 after all.
                lower = {1, 2, int(known.lower)} if known.lower >= 2 else {int(known.lower)}
                yield from (Bound(f"{formula} >= {end}") for end in sorted(lower) if end)
                if known.upper < _ENDLESS:
                    yield Bound(f"{formula} <= {int(known.upper)}")

    def of_program(self, program: ExportedProgram) -> list[Bound]:
        """What an exported program itself checks: the bounds of one that was not traced here.

        Raises:
            CaptureError: it checks something that cannot be read.
        """
        checked = [self._parse(text) for text in getattr(program, "_guards_code", ())]
        ranges = (item for item in self._of_ranges(program) if item.numbers - {0, 1, 2})
        shapes = (Bound(formula, is_shape=True) for formula in self._said)
        guards = () if checked else self.guards()
        found = [*shapes, *map(Bound, checked), *guards, *ranges]
        return [replace(item, origin="program") for item in found]

    def _formula(self, expr: Any) -> str | None:
        """A sympy expression of symbols in the sizes of places; None where it depends on data."""
        if not expr.free_symbols <= self.symbols.keys():
            return None
        return _print(expr.xreplace({key: item.formula for key, item in self.symbols.items()}))

    def _parse(self, text: str) -> str:
        """A check of an exported program, "L['x'].size()[2] < 100", in the sizes of places."""
        tree = _Places(self._names).visit(ast.parse(text, mode="eval"))
        if not _is_formula(tree):
            raise CaptureError(f"the exported program checks {text!r}, which cannot be read")
        return ast.unparse(tree)


class _Places(ast.NodeTransformer):
    """Sources of sizes, and the functions of the tracer, by the names that formulas have."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> Any:
        number = self.names.get(ast.unparse(node)) if isinstance(node, ast.expr) else None
        if number is not None:
            return ast.Name(f"p{number}", ast.Load())
        return super().visit(node)


def _is_formula(tree: ast.AST) -> bool:
    """Whether a tree is arithmetic on places, and nothing else."""
    if isinstance(tree, ast.Name):
        return tree.id[0] == "p" and tree.id[1:].isdigit()
    if isinstance(tree, ast.Call):
        return ast.unparse(tree.func) in _CALLS and all(map(_is_formula, tree.args))
    return isinstance(tree, _NODES) and all(map(_is_formula, ast.iter_child_nodes(tree)))


def _source_names(
    graph_module: GraphModule, flat: Sequence[Any], places: Sequence[Place]
) -> dict[str, int]:
    """What the tracer calls each place: "L['x'].size()[2]", "L['items'][0].size()[1]"."""
    parameters = list(inspect.signature(graph_module.forward).parameters)
    given = pytree.tree_unflatten(list(range(len(flat))), graph_module._in_spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(given)[0]]
    names: dict[str, int] = {}
    for number, place in enumerate(places):
        path: Any = paths[place.index]
        kind, key, *rest = path
        of = parameters[key.idx] if kind.idx == 0 else key.key
        inner = pytree.keystr(tuple(rest))
        size = "" if place.axis is None else f".size()[{place.axis}]"
        bases = [
            f"L['{of}']{inner}",
            f"L['kwargs']['{of}']{inner}",
            f"L['flat_args'][{place.index}]",
        ]
        if variadic := re.fullmatch(r"(.+)_(\d+)", of):  # *args
            bases.append(f"L['{variadic[1]}'][{variadic[2]}]{inner}")
        names |= {ast.unparse(ast.parse(base + size)): number for base in bases}
    return names


def source_name(source: Any) -> str:
    """What the tracer calls a size: "L['x'].size()[0]"."""
    name = source.name if isinstance(source.name, str) else source.name()  # torch 2.11
    return ast.unparse(ast.parse(name))


def _print(expr: Any) -> str:
    return str(PythonPrinter().doprint(expr))


def _root(dim: Any) -> Any:
    """The name of a declared dimension, or of the one that it is derived from."""
    return getattr(getattr(dim, "root", dim), "__name__", None)


def _chooses_kernel(guard: Any) -> bool:
    """Whether torch looked at a size to guess the memory format of a convolution's result."""
    frame = guard.sloc.framework_loc
    place = getattr(frame, "filename", ""), getattr(frame, "name", "")
    return (Path(place[0]).name, place[1]) == ("fake_impls.py", "conv")


def _line(guard: Any) -> str | None:
    """The line of the user's code that compared sizes; None where torch itself did."""
    frame = guard.sloc.framework_loc
    if isinstance(frame, str) or frame is None or _TORCH in Path(frame.filename).parents:
        return None
    return f"{frame.filename}:{frame.lineno}"
