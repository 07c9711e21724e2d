"""Every planted fault is caught, and what is right is not taken for one."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from passfx.graph.editor import Editor, Match
from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_call
from passfx.passes import Pass
from passfx.pipeline import optimize_graph
from passfx.verify.error import relative_error
from passfx.verify.proofs import TOTAL_TOLERANCE
from tests.helpers import captured
from tests.verify.faults import FAULTS, Planted, aten, is_caught, program


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    assert is_caught(name)


def test_there_are_faults_of_many_kinds() -> None:
    assert len(FAULTS) >= 34


def test_the_same_operators_once_more_are_no_fault() -> None:
    """In every place where a fault is planted; so none is caught for its place alone."""
    graph_module, _ = optimize_graph(program(), [])
    for position in range(len(FAULTS)):
        editor = Planted(position, lambda editor, node: editor.again(node, {})).run(graph_module)
        assert len(editor.rewrites) == 1, editor.refusals


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(500):
            x = x + 1e-3 * x.sin()
        return x


class SlightlyOff(Pass):
    """Each rewrite is within the tolerance of a certificate; all of them together are not."""

    name = "slightly-off"

    def match(self, node: Node) -> Match | None:
        return Match(node, (node,), "slightly off") if is_call(node, aten.sin) else None

    def rewrite(self, editor: Editor, match: Match) -> Node:
        return editor.call(aten.mul.Tensor, editor.again(match.at, {}), 1 + 5e-10)


def test_five_hundred_errors_that_are_small_each_are_not_small_together() -> None:
    x = torch.randn(3)
    program = captured(Chain(), x)
    graph_module, (report,) = optimize_graph(program, [SlightlyOff()])
    assert sum(rewrite.error or 0.0 for rewrite in report.rewrites) <= TOTAL_TOLERANCE
    assert any("its error adds up to" in refusal.reason for refusal in report.refusals)
    pairs = zip(run_flat(graph_module, [x]), run_flat(program.graph_module, [x]), strict=True)
    assert all(relative_error(new, old) <= TOTAL_TOLERANCE for new, old in pairs)
