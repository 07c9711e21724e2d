"""Every pass takes time in proportion to the nodes of a graph: its work a node does not grow.

`python -m tests.benchmarks.scaling` prints seconds; here calls are counted, which no load changes.
"""

from collections.abc import Callable
from functools import partial

import pytest
from torch.fx import Graph, GraphModule

from passfx.analysis.shortcuts import find_shortcuts
from passfx.capture.functional import find_dead_code
from passfx.passes import PASSES
from passfx.pipeline import run_passes
from passfx.target import CPU
from tests.large import GRAPHS, calls, residuals, siblings, unused

Build = Callable[[int], GraphModule]

# Sorting takes n·log n: from 1,000 to 10,000 nodes a third more for each.
_GROWTH = 1.5


def work_of(build: Build, count: int, *, verify: bool = False) -> dict[str, float]:
    """The calls of every pass, one after the other, for each node of a graph."""
    graph_module = build(count)
    size = len(graph_module.graph.nodes)
    run = partial(run_passes, graph_module, verify=verify)
    return {kind.name: calls(lambda: run([kind(CPU)])) / size for kind in PASSES}  # noqa: B023


def assert_linear(build: Build, small: int, large: int, *, verify: bool = False) -> None:
    before, after = (work_of(build, count, verify=verify) for count in (small, large))
    grown = {name: after[name] / before[name] for name in before}
    assert all(factor <= _GROWTH for factor in grown.values()), grown


@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_every_pass_is_linear(build: Build) -> None:
    assert_linear(build, 200, 600)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3000, 10000])
@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_every_pass_is_linear_up_to_10000_nodes(build: Build, count: int) -> None:
    assert_linear(build, 1000, count)


def test_certificates_are_linear_too() -> None:
    assert_linear(siblings, 200, 600, verify=True)


def test_the_analyses_are_linear() -> None:
    for analysis, build in (
        (lambda net: find_shortcuts(net), residuals),
        (lambda net: find_dead_code(net.graph, Graph()), unused),
    ):
        nets = [build(count) for count in (300, 900)]
        small, large = (calls(lambda: analysis(net)) for net in nets)  # noqa: B023
        assert large <= 3 * _GROWTH * small
