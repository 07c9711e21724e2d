"""Run the passes over a captured graph, verify after each one, roll back what fails, report."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch.fx import Graph, GraphModule

from passfx.capture import Captured
from passfx.errors import SourceError
from passfx.graph.editor import Certificate, Certify, Refusal, Rewrite
from passfx.graph.query import same_sizes, tensor
from passfx.passes import PASSES, Pass
from passfx.passes.remove_unused import RemoveUnused
from passfx.verify import certify

_ROUNDS = 4


@dataclass
class PassRun:
    """What one pass did, over all rounds."""

    name: str
    seconds: float = 0.0
    rolled_back: bool = False
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def choose_passes(
    skip: Collection[str] = (), only: Collection[str] | None = None, target: str = "cpu"
) -> list[Pass]:
    """The passes to run for a target, in order.

    Raises:
        SourceError: a name is no pass's name.
    """
    names = [kind.name for kind in PASSES]
    for name in (*skip, *(only or ())):
        if name not in names:
            raise SourceError(f"there is no pass {name!r}; the passes are {', '.join(names)}")
    chosen = [name for name in names if name not in skip and (only is None or name in only)]
    return [kind.for_target(target) for kind in PASSES if kind.name in chosen]


def run_passes(
    graph_module: GraphModule,
    passes: Collection[Pass],
    *,
    verify: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> list[PassRun]:
    """Rewrite `graph_module` in place until no pass finds more to do.

    Args:
        verify: prove every rewrite; a rewrite whose certificate fails is undone. Without it,
            rewrites are only checked for shape and dtype.
        progress: told the name of each pass as it starts.
    """
    proof: Certify = certify if verify else (lambda _: Certificate(None))
    runs = {item.name: PassRun(item.name) for item in passes}
    for _ in range(_ROUNDS):
        changed = False
        for item in passes:
            progress(item.name)
            changed |= _run_pass(item, graph_module, proof, runs[item.name])
        if not changed:
            break
    return list(runs.values())


def _run_pass(item: Pass, graph_module: GraphModule, proof: Certify, run: PassRun) -> bool:
    """One pass, undone as a whole if it leaves a broken graph; whether it changed anything."""
    started = time.perf_counter()
    before = _copy(graph_module)
    editor = item.run(graph_module, proof)
    failure = structural_failure(before, graph_module.graph)
    if failure is None:
        run.rewrites += editor.rewrites
    else:
        run.rolled_back = True
        editor.refuse(Refusal("output", "", f"the pass was undone: {failure}"))
        graph_module.graph = before
    run.refusals += [refusal for refusal in editor.refusals if refusal not in run.refusals]
    editor.finish()
    run.seconds += time.perf_counter() - started
    return editor.modified and failure is None


def _copy(graph_module: GraphModule) -> Graph:
    """A copy of the graph with its own nodes and metadata, reading the same constants."""
    graph = Graph()
    output = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    assert isinstance(output, tuple)
    graph.output(output[0])
    graph.output_node().meta = dict(graph_module.graph.output_node().meta)
    graph.set_codegen(graph_module.graph._codegen)
    return graph


def structural_failure(before: Graph, after: Graph) -> str | None:
    """Why `after` is not a sound rewrite of `before`, by lint, inputs and output types alone."""
    try:
        after.lint()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    inputs = [
        [node.name for node in graph.nodes if node.op == "placeholder"] for graph in (before, after)
    ]
    if inputs[0] != inputs[1]:
        return f"the inputs were {inputs[0]}, now {inputs[1]}"
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
    *,
    verify: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[GraphModule, list[PassRun]]:
    """A rewritten copy of a captured graph, and what each pass did to it."""
    graph_module = GraphModule(captured.graph_module, _copy(captured.graph_module))
    runs = run_passes(graph_module, passes, verify=verify, progress=progress)
    for run in runs:
        if run.name == RemoveUnused.name:
            run.rewrites[:0] = captured.dead_code
    return graph_module, runs
