"""Run the passes over a captured graph, verify after each one, roll back what fails, report."""

import difflib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch.fx import Graph, GraphModule

from passfx.capture.program import Captured
from passfx.capture.weights import hold_tensors
from passfx.errors import PassError, SourceError, named_line
from passfx.graph.query import tensor
from passfx.graph.shapes import same_sizes
from passfx.passes import PASSES, Pass
from passfx.record import PassReport, Refusal
from passfx.target import CPU, Target
from passfx.verify.certificate import certify, unproven
from passfx.verify.proofs import Proofs

_ROUNDS = 4
_RENAMED = {"move-pools": "move-resampling", "move-upsamples": "move-resampling"}

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class Plan:
    """What to do with a captured graph.

    Attributes:
        target: what it is rewritten for.
        skip, only: names of passes to leave out, or to run alone.
        verify: prove every rewrite; one whose certificate fails is undone. Without it, rewrites
            are only checked for shape, dtype and overflow.
        allow_nonfinite: with `verify`, accept weights that are NaN or infinite.
        save_repro: a folder, made if there is none, for what is undone: each rewrite as a `.pt2`
            of the operators before and after and a script that shows the failure.

    Raises:
        SourceError: a name is no pass's name, or `save_repro` is no folder and cannot be one.
    """

    target: Target = CPU
    skip: Collection[str] = ()
    only: Collection[str] | None = None
    verify: bool = True
    allow_nonfinite: bool = False
    save_repro: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.save_repro is not None:
            _make_folder(Path(self.save_repro))
        for name in (*self.skip, *(self.only or ())):
            check_pass(name, [kind.name for kind in PASSES])

    @property
    def passes(self) -> list[Pass]:
        """The passes to run, in order."""
        return [
            kind(self.target)
            for kind in PASSES
            if kind.name not in self.skip and (self.only is None or kind.name in self.only)
        ]


def check_pass(name: str, names: Collection[str]) -> None:
    """Refuse what is no pass's name.

    Raises:
        SourceError: it is not among `names`; the message has a former name's present one, or
            the nearest.
    """
    if name in _RENAMED:
        raise SourceError(f"the pass {name!r} is now {_RENAMED[name]!r}")
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"the passes are {', '.join(names)}"
        raise SourceError(f"there is no pass {name!r}; {hint}")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is no folder" if path.exists() else error.strerror or str(error)
        message = f"what is undone cannot be saved in {path}: {reason}; give a folder"
        raise SourceError(message) from error


def run_passes(
    graph_module: GraphModule,
    passes: Collection[Pass],
    *,
    verify: bool = True,
    save_repro: str | PathLike[str] | None = None,
    progress: Progress = silent,
) -> tuple[PassReport, ...]:
    """Rewrite `graph_module` in place until no pass finds more to do.

    Args:
        verify, save_repro: as in `Plan`.
        progress: told the name of each pass as it starts.

    Raises:
        PassError: a pass raised; the message names it and those that ran before.
    """
    folder = None if save_repro is None else Path(save_repro)
    proofs = Proofs(certify if verify else unproven, folder)
    reports = {item.name: PassReport(item.name) for item in passes}
    ran: list[str] = []
    for _ in range(_ROUNDS):
        changed = False
        for item in passes:
            progress(item.name)
            try:
                report = _run_pass(item, graph_module, proofs)
            except Exception as error:
                before = f", after {', '.join(dict.fromkeys(ran))}" if ran else ""
                raise PassError(f"the pass {item.name}{before}: {named_line(error)}") from error
            ran.append(item.name)
            reports[item.name] = reports[item.name].then(report)
            changed |= bool(report.rewrites)
        if not changed:
            break
    return tuple(reports.values())


def _run_pass(item: Pass, graph_module: GraphModule, proofs: Proofs) -> PassReport:
    """One pass, undone as a whole if it leaves a broken graph."""
    started = time.perf_counter()
    before, spent = _copy(graph_module), proofs.spent
    editor = item.run(graph_module, proofs.of(item.name), proofs.saver(item.name))
    rewrites, refusals = editor.rewrites, editor.refusals
    failure = structural_failure(before, graph_module.graph)
    if failure is not None:
        undone = Refusal("output", "", f"the pass was undone: {failure}")
        rewrites, refusals = [], [*refusals, undone]
        graph_module.graph, proofs.spent = before, spent
    editor.finish()
    seconds = time.perf_counter() - started
    return PassReport(item.name, seconds, failure is not None, tuple(rewrites), tuple(refusals))


def _copy(graph_module: GraphModule) -> Graph:
    """A copy of the graph with its own nodes and metadata, reading the same constants."""
    graph = Graph()
    output = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    assert isinstance(output, tuple)
    graph.output(output[0]).meta = dict(graph_module.graph.output_node().meta)
    graph.set_codegen(graph_module.graph._codegen)
    return graph


def structural_failure(before: Graph, after: Graph) -> str | None:
    """Why `after` is not a sound rewrite of `before`, by lint, inputs and output types alone."""
    try:
        after.lint()
    except Exception as error:
        return named_line(error)
    placeholders = (graph.find_nodes(op="placeholder") for graph in (before, after))
    given, now = ([node.name for node in nodes] for nodes in placeholders)
    if given != now:
        return f"the inputs were {given}, now {now}"
    old, new = (graph.output_node().args[0] for graph in (before, after))
    assert isinstance(old, list | tuple) and isinstance(new, list | tuple)
    if len(old) != len(new):
        return f"the model had {len(old)} outputs, now {len(new)}"
    for position, pair in enumerate(zip(old, new, strict=True)):
        x, y = map(tensor, pair)
        if x is not None and (y is None or x.dtype != y.dtype or not same_sizes(x.shape, y.shape)):
            return f"output {position} changed its shape or dtype"
    return None


def optimize_graph(
    captured: Captured,
    passes: Collection[Pass],
    verify: bool = True,
    progress: Progress = silent,
    save_repro: str | PathLike[str] | None = None,
) -> tuple[GraphModule, tuple[PassReport, ...]]:
    """A rewritten copy of a captured graph, and what each pass did to it."""
    graph_module = GraphModule(captured.graph_module, _copy(captured.graph_module))
    hold_tensors(graph_module, copied=False)
    reports = run_passes(
        graph_module, passes, verify=verify, save_repro=save_repro, progress=progress
    )
    dead = captured.dead_code
    return graph_module, tuple(
        dead.then(report) if report.name == dead.name else report for report in reports
    )
