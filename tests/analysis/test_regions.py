"""The cover of a graph's affine nodes: what is collapsed, what is left, and how much work it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph

from passfx.analysis import regions
from passfx.analysis.regions import Cover, cheapest_cover
from passfx.pipeline import optimize_graph
from passfx.target import CPU
from tests.helpers import captured
from tests.passes.strategies import Model


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    graph_module, _ = optimize_graph(captured(model, x), [])
    return graph_module.graph


def cover(model: nn.Module, x: Tensor) -> Cover:
    return cheapest_cover(graph_of(model, x), CPU.profile)


def spans(found: Cover) -> list[tuple[str, ...]]:
    """The nodes of every chosen candidate, in the graph's order."""
    return [tuple(node.name for node in sorted(candidate.span)) for candidate in found.chosen[::-1]]


def chain(pairs: int) -> Graph:
    """A product and a sum, over and over."""
    graph = graph_of(Model(lambda m, x: x * 2 + 0.5), torch.randn(1, 2, 3, 3))
    product, last = (node for node in graph.nodes if node.op == "call_function")
    total, output = last, graph.output_node()
    for _ in range(pairs - 1):
        with graph.inserting_before(output):
            for node in (product, total):
                last = graph.node_copy(node, lambda _, before=last: before)
    output.args = ([last],)
    return graph


def test_a_long_chain_takes_work_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    compose = regions.compose

    def counted(*forms: Any) -> Any:
        nonlocal calls
        calls += 1
        return compose(*forms)

    monkeypatch.setattr(regions, "compose", counted)
    found = cheapest_cover(chain(500), CPU.profile)
    assert 1000 < calls <= 1000 * (regions._LIMIT + 2)  # and the node before, in two layouts
    covered = [node for candidate in found.chosen for node in candidate.span]
    assert len(covered) == len(set(covered)) > 900
    assert max(len(candidate.span) for candidate in found.chosen) <= regions._SPAN


def test_a_node_keeps_one_candidate_a_source_and_layout() -> None:
    model = Model(lambda m, x: m.b(m.a(x)) + m.a(x) + x, a=nn.Conv2d(2, 2, 1), b=nn.Conv2d(2, 2, 1))
    search = regions._Search(CPU.profile)
    for node in graph_of(model, torch.randn(1, 2, 3, 3)).nodes:
        search.find(node)
    assert search.candidates
    for candidates in search.candidates.values():
        keys = [item.key for item in candidates]
        assert len(keys) == len(set(keys)) <= regions._LIMIT


def test_a_fork_whose_branches_rejoin_is_collapsed_through() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        stem = m.stem(x)
        return m.last(m.left(stem) + m.right(stem) + stem)

    parts = {name: nn.Conv2d(8, 8, 1) for name in ("stem", "left", "right", "last")}
    found = cover(Model(forward, **parts), torch.randn(1, 8, 6, 6))
    assert spans(found) == [("conv2d", "conv2d_1", "conv2d_2", "add", "add_1", "conv2d_3")]


def test_one_convolution_under_two_norms_is_left() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.a(y).relu() + m.b(y).sigmoid()

    model = Model(forward, conv=nn.Conv2d(4, 4, 3), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4))
    assert cover(model.eval(), torch.randn(1, 4, 6, 6)).chosen == ()


def test_a_value_that_is_also_an_output_stays() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, m.norm(y) * 2

    model = Model(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)).eval()
    assert spans(cover(model, torch.randn(1, 4, 6, 6))) == [("batch_norm", "mul")]


def test_depthwise_then_pointwise_stay_apart_with_the_figures() -> None:
    depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    model = Model(lambda m, x: m.b(m.a(x)), a=depthwise, b=nn.Conv2d(64, 128, 1))
    found = cover(model, torch.randn(1, 64, 32, 32))
    assert found.chosen == ()
    ((node, reason),) = found.refused
    assert node.name == "conv2d_1"
    assert reason.startswith("2 operators as one would take 75,497,472 MACs and ")
    assert reason.endswith(" µs, more than they take apart")


def sobel(dense: bool) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        edges = m.sobel(m.mix(x))
        return edges + m.dense(x) if dense else edges

    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
    depthwise.weight.data.copy_(kernel)
    mix, full = nn.Conv2d(32, 32, 1, bias=False), nn.Conv2d(32, 32, 3, padding=1)
    return Model(forward, mix=mix, sobel=depthwise, dense=full)


def test_a_dear_branch_becomes_free_in_a_sum() -> None:
    x = torch.randn(1, 32, 64, 64)
    assert cover(sobel(dense=False), x).chosen == ()
    assert spans(cover(sobel(dense=True), x)) == [("conv2d", "conv2d_1", "conv2d_2", "add")]


def test_a_collapse_that_is_not_exact_says_why() -> None:
    model = Model(
        lambda m, x: m.b(m.a(x)),
        a=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    found = cover(model, torch.randn(1, 4, 6, 6))
    assert found.chosen == ()
    ((node, reason),) = found.refused
    assert node.name == "conv2d_1"
    assert reason == "its padding is zeros where the operator before, past the border, has values"


def test_pads_and_slices_alone_stay() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        return nn.functional.pad(nn.functional.pad(x, (1, 1)), (0, 0, 2, 1))[:, :, 1:-1, ::2]

    assert cover(Model(forward), torch.randn(1, 4, 6, 6)).chosen == ()


def test_a_form_that_takes_as_many_operators_is_left() -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        return m.conv(nn.functional.pad(x, (0, 1, 0, 1)))

    model = Model(padded, conv=nn.Conv2d(4, 4, 3, stride=2))
    assert cover(model, torch.randn(1, 4, 6, 6)).chosen == ()
    last = Model(lambda m, x: x * m.scale + m.shift, scale=torch.randn(4), shift=torch.randn(4))
    assert cover(last, torch.randn(2, 5, 4)).chosen == ()
