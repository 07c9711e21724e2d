"""Shared by the tests: captured modules, passes run alone, comparison, imports that are undone."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from torch import nn
from torch.fx import GraphModule

from passfx.capture.program import Captured, capture
from passfx.graph.editor import Editor
from passfx.graph.evaluate import run_flat
from passfx.graph.query import op_name, operators
from passfx.graph.text import to_text
from passfx.passes import Pass
from passfx.pipeline import optimize_graph
from passfx.verify.certificate import unproven
from passfx.verify.error import relative_error
from tests.models import randomize as randomize


def captured(model: nn.Module, *args: Any, **options: Any) -> Captured:
    """Capture a model on positional example inputs."""
    return capture(model, args, **options)


def ops(graph_module: GraphModule) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(map(op_name, operators(graph_module)))


def apply(item: Pass, model: nn.Module, *args: Any, **options: Any) -> tuple[GraphModule, Editor]:
    """Run one pass alone on a captured model; the rewritten graph and the editor's record.

    Without certificates it must do the same: what a pass matches is right by itself. So whatever a
    test finds of the result holds for both.
    """
    program = captured(model, *args, **options)
    (graph_module, _), (trusting, _) = (optimize_graph(program, []) for _ in range(2))
    editor, trusted = item.run(graph_module), item.run(trusting, unproven)
    for each in (editor, trusted):
        each.finish()
    graph_module.graph.lint()
    assert to_text(graph_module) == to_text(trusting), [*editor.refusals]
    return graph_module, editor


def assert_same_structure(graph_module: GraphModule, expected: nn.Module, *args: Any) -> None:
    """The graph is the one that capturing `expected` gives, whatever its weights."""
    assert to_text(graph_module) == to_text(captured(expected, *args).graph_module)


def assert_preserves(
    graph_module: GraphModule, model: nn.Module, inputs: Sequence[Any], tolerance: float = 1e-10
) -> None:
    """The graph computes what the model, a float64 one, does."""
    with torch.no_grad():
        wanted = model.eval()(*inputs)
    (result,) = run_flat(graph_module, inputs)
    assert relative_error(result, wanted) <= tolerance


@contextmanager
def clean_imports(folder: Path) -> Iterator[None]:
    """What is imported from a folder stays out of the tests that follow."""
    path, before = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def draws(count: int) -> int:
    """How many examples a test draws that captures a model for each of them."""
    return count * settings.default.max_examples // 100
