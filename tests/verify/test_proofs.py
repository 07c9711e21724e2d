"""The proofs of one run know of each other."""

import torch
from torch.fx import Node

from passfx.graph.editor import Certificate, Edit, Editor, Match
from passfx.passes import Pass
from passfx.pipeline import optimize_graph
from passfx.verify.proofs import TOTAL_TOLERANCE, Proofs
from tests.helpers import captured
from tests.verify.faults import aten
from tests.verify.nets import Folded
from tests.verify.wrong import Replace


def again(editor: Editor, match: Match) -> Node:
    return editor.again(match.at, {})


def undone(proofs: Proofs, *passes: Pass) -> list[str]:
    """The reasons for which rewrites of a graph are undone."""
    graph_module, _ = optimize_graph(captured(Folded(), torch.randn(2, 4, 8, 8)), [])
    editors = [item.run(graph_module, proofs.of(item.name)) for item in passes]
    return [refusal.reason for editor in editors for refusal in editor.refusals]


def test_a_certificate_that_failed_is_not_tried_again() -> None:
    tried = []

    def certify(edit: Edit) -> Certificate:
        tried.append(edit.match.at.name)
        return Certificate(1.0, "wrong")

    first, other = Replace((aten.relu,), again), Replace((aten.batch_norm,), again)
    assert undone(Proofs(certify), first, other, first) == ["undone: wrong"] * 3
    assert tried == ["relu", "batch_norm"]


def test_another_pass_is_another_rewrite() -> None:
    tried = []

    def certify(edit: Edit) -> Certificate:
        tried.append(edit.match.at.name)
        return Certificate(None, "wrong")

    class Other(Replace):
        name = "other"

    undone(Proofs(certify), *(kind((aten.relu,), again) for kind in (Replace, Other)))
    assert tried == ["relu", "relu"]


def test_errors_add_up() -> None:
    def certify(edit: Edit) -> Certificate:
        return Certificate(0.6 * TOTAL_TOLERANCE)

    passes = Replace((aten.relu,), again), Replace((aten.batch_norm,), again)
    proofs = Proofs(certify)
    assert undone(proofs, *passes) == [
        "undone: with those of the rewrites before, its error adds up to 1.2e-08"
    ]
    assert proofs.spent == 0.6 * TOTAL_TOLERANCE
