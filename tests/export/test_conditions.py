"""Conditions and loops are written with their branches, and run under ONNX Runtime."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop
from torch.export import Dim

import passfx
from passfx.errors import ExportError
from passfx.runtime.reference import open_session
from passfx.verify.error import relative_error


class Net(nn.Module):
    """Two linear layers and a table, around a function of itself and x."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.table = torch.randn(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def weights(net: Any, x: Tensor) -> Tensor:
    y = net.second(net.first(x))
    return torch.cond(x.sum() > 0, net.first, lambda y: net.second(y) * net.table, (y,)) + y


def nested(net: Any, x: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > -4, net.second, lambda x: x * 2 + net.table, (x,))

    return torch.cond(x.sum() > 0, net.first, inner, (x,))


def loop(net: Any, x: Tensor) -> Tensor:
    start = torch.tensor(0), x
    return while_loop(lambda at, x: at < 3, lambda at, x: (at + 1, net.first(x)), start)[1]


def sums(net: Any, x: Tensor) -> Tensor:
    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        carry = carry + net.first(row)
        return carry, carry.clone()

    return scan(step, torch.zeros(3), x)[1]


@pytest.mark.parametrize(
    ("body", "operator", "shapes"),
    [
        (weights, "If", None),
        (weights, "If", ({0: Dim.DYNAMIC},)),
        (nested, "If", None),
        (loop, "Loop", None),
        (sums, "Scan", None),
    ],
)
def test_every_branch_runs_in_the_file_and_in_the_module(
    tmp_path: Path, body: Callable[..., Tensor], operator: str, shapes: Any
) -> None:
    model, x = Net(body).eval(), torch.ones(2, 3)
    optimized = passfx.optimize(model, (x,), dynamic_shapes=shapes)
    optimized.export(tmp_path / "model.onnx")
    assert operator in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    session = open_session(tmp_path / "model.onnx")
    with torch.no_grad():
        for given in (x, -x, -x / 2, *([torch.ones(5, 3)] if shapes else [])):
            wanted = model(given)
            assert relative_error(session.run([given])[0], wanted) <= 1e-6
            assert relative_error(optimized.module(given), wanted) <= 1e-6


def test_equal_weights_that_a_pass_shares_are_no_reason_to_fail(tmp_path: Path) -> None:
    model = Net(lambda net, x: torch.cond(x.sum() > 0, net.first, net.second, (x,))).eval()
    model.second = copy.deepcopy(model.first)
    x = torch.ones(2, 3)
    passfx.optimize(model, (x,)).export(tmp_path / "model.onnx")
    with torch.no_grad():
        for given in (x, -x):
            (result,) = open_session(tmp_path / "model.onnx").run([given])
            assert relative_error(result, model(given)) <= 1e-6


def test_a_loop_that_the_exporter_cannot_write_is_refused_by_name(tmp_path: Path) -> None:
    from torch._higher_order_ops.map import map as each

    model = Net(lambda net, x: each(lambda row: row * 2, x))
    with pytest.raises(ExportError, match=r"cannot write this model: .* for MapImpl\."):
        passfx.optimize(model, (torch.ones(2, 3),)).export(tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
