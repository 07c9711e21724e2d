"""The sizes of a certificate: small whatever the model's are, linked, and taken by operators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Node
from torch.nn import functional

from passfx.capture.program import Captured
from passfx.graph.editor import Editor, Match
from passfx.graph.query import is_call, reached
from passfx.passes import Pass
from passfx.pipeline import optimize_graph
from passfx.verify import certificate
from tests.helpers import captured
from tests.passes.strategies import Model


class Again(Pass):
    """Computes the model's result once more, by the same operators."""

    name = "again"

    def match(self, node: Node) -> Match | None:
        if node not in node.graph.output_node().args[0]:
            return None
        nodes = reached(node, lambda item: item.all_input_nodes)
        return Match(node, tuple(filter(is_call, nodes)), "again")

    def rewrite(self, editor: Editor, match: Match) -> Node:
        new: dict[Node, Node | None] = {}
        for node in match.nodes:
            new[node] = editor.again(node, new)
        return new[match.at]


def shapes(program: Captured, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The shapes of the inputs at which the old nodes ran and were compared."""
    seen = []
    compare = certificate._Proof._compare

    def spy(proof: Any, known: dict[Node, Any]) -> Any:
        drawn = (known[node] for node in proof.frontier)
        seen.append([tuple(item.shape) for item in drawn if isinstance(item, Tensor)])
        return compare(proof, known)

    monkeypatch.setattr(certificate._Proof, "_compare", spy)
    _, (report,) = optimize_graph(program, [Again()])
    assert report.rewrites and not any(item.undone for item in report.refusals)
    return seen


FORMS: dict[str, Callable[..., Tensor]] = {
    "convolution": lambda m, x: m.conv(x).relu(),
    "strided": lambda m, x: m.conv(x[:, :, 1:-1]) + m.conv(x)[:, :, 1:-1],
    "pool": lambda m, x: functional.avg_pool2d(x, 3, 2, 1),
    "pad": lambda m, x: functional.pad(x, (2, 2, 2, 2), "reflect"),
    "interpolation": lambda m, x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "sizes that are even": lambda m, x: functional.pixel_unshuffle(x, 2),
    "sizes that are divided by 8": lambda m, x: functional.pixel_unshuffle(x, 8),
    "no result of a small input": lambda m, x: m.shrinking(x),
    "wide kernel": lambda m, x: functional.max_pool2d(x, 7),
    "linear": lambda m, x: m.linear(x.permute(0, 2, 3, 1)),
}


@pytest.mark.parametrize("name", FORMS)
def test_sizes_are_small_and_do_not_grow_with_the_image(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "conv": nn.Conv2d(4, 4, 3, padding=1),
        "shrinking": nn.ConvTranspose2d(4, 4, 3, padding=3),
        "linear": nn.Linear(4, 3),
    }
    model = Model(FORMS[name], **parts)
    seen = []
    for size in (32, 64):
        with monkeypatch.context() as patch:
            seen.append(shapes(captured(model, torch.randn(2, 4, size, size)), patch)[-3:])
    assert seen[0] == seen[1]
    batches, _, rows, columns = zip(*(shape for (shape,) in seen[0]), strict=True)
    assert max(batches) > 6 and max(rows) > 20 and max(columns) > 20
    assert len(set(zip(rows, columns, strict=True))) > 1
    assert all(row * column <= 4096 for row, column in zip(rows, columns, strict=True))


def test_sizes_of_several_inputs_are_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the skip connection of a decoder: one input is half as long, and rounded up."""
    model = Model(lambda m, x, y: torch.cat([functional.interpolate(x, scale_factor=2.0), y], 1))
    x, y = torch.randn(1, 3, 16, 24), torch.randn(1, 2, 32, 48)
    seen = shapes(captured(model, x, y), monkeypatch)
    assert len(seen) > 2 and max(b[2] for _, b in seen) < 64
    assert all((2 * a[2], 2 * a[3]) == b[2:] for a, b in seen)

    model = Model(lambda m, x, y: m.conv(x) + y, conv=nn.Conv2d(3, 3, 3, stride=2, padding=1))
    seen = shapes(
        captured(model, torch.randn(1, 3, 33, 33), torch.randn(1, 3, 17, 17)), monkeypatch
    )
    assert len(seen) > 2
    assert all((a[2] + 1) // 2 == b[2] for a, b in seen)


def test_sizes_that_the_graph_fixes_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(lambda m, x: x.reshape(2, 3, 40).transpose(1, 2))
    assert shapes(captured(model, torch.randn(2, 3, 5, 8)), monkeypatch)[-1] == [(2, 3, 5, 8)]


def test_dynamic_sizes_stay_in_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(lambda m, x: x.flatten(1).relu())
    dynamic = (({0: Dim("batch", min=2, max=5), 2: Dim("length", min=4, max=64)},),)
    program = captured(model, torch.randn(3, 2, 8), dynamic_shapes=dynamic)
    seen = shapes(program, monkeypatch)
    assert len(seen) > 2
    assert all(2 <= shape[0] <= 5 and 4 <= shape[2] <= 64 for (shape,) in seen)
