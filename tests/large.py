"""Graphs of any number of nodes, built by hand, because tracing thousands of nodes takes minutes.

Each function of `GRAPHS` makes one of about `count` nodes, of a shape that a pass could take
quadratic time for; `calls` counts what a pass does.
"""

from collections.abc import Callable
from cProfile import Profile
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten


class _Builder:
    """A captured graph in the making, on images of [1, 4, 6, 6]."""

    def __init__(self) -> None:
        self.mode, self.root, self.graph = FakeTensorMode(), nn.Module(), Graph()
        self.x = self.graph.placeholder("x")
        self.x.meta["val"] = self._fake(torch.zeros(1, 4, 6, 6))
        self._known: dict[Any, Any] = {}

    def _fake(self, tensor: Tensor) -> Tensor:
        return self.mode.from_tensor(tensor, static_shapes=True)

    def constant(self, *shape: int) -> Node:
        name = f"weight{len(self.graph.nodes)}"
        self.root.register_buffer(name, torch.rand(shape))
        node = self.graph.get_attr(name)
        key = "constant", shape
        if key not in self._known:
            self._known[key] = self._fake(torch.zeros(shape))
        node.meta["val"] = self._known[key]
        return node

    def call(self, target: Any, *args: Any) -> Node:
        """A call, whose fake value is inferred once for arguments of the same shapes."""
        node = self.graph.call_function(target, args)
        values = map_arg(args, lambda read: read.meta["val"])
        key = target, str(map_arg(args, lambda read: str(tuple(read.meta["val"].shape))))
        if key not in self._known:
            with self.mode, torch.no_grad():
                self._known[key] = target(*values)
        node.meta["val"] = self._known[key]
        return node

    def conv(self, x: Node, height: int = 3) -> Node:
        weight = self.constant(4, 4, height, 3)
        return self.call(aten.conv2d.default, x, weight, None, [1, 1], [1, 1])

    def relu(self, x: Node) -> Node:
        return self.call(aten.relu.default, x)

    def add(self, x: Node, y: Node) -> Node:
        return self.call(aten.add.Tensor, x, y)

    def done(self, *results: Node) -> GraphModule:
        self.graph.output(list(results))
        return GraphModule(self.root, self.graph)


def siblings(count: int) -> GraphModule:
    """Convolutions of one input, which become one."""
    b = _Builder()
    return b.done(*(b.conv(b.x) for _ in range(count // 2)))


def activated_siblings(count: int) -> GraphModule:
    """Siblings of many geometries, each pair with an activation of its own."""
    b = _Builder()
    parts = []
    for number in range(count // 3):
        kind = aten.relu.default if number % 4 < 2 else aten.tanh.default
        weight = b.constant(4, 4, 1, 1)
        options = [1, 1], [number // 4, 0]
        parts.append(b.call(kind, b.call(aten.conv2d.default, b.x, weight, None, *options)))
    return b.done(*parts)


def residuals(count: int) -> GraphModule:
    """x = x + relu(conv(x)), again and again."""
    b = _Builder()
    x = b.x
    for _ in range(count // 4):
        x = b.add(x, b.relu(b.conv(x)))
    return b.done(x)


def affine_residuals(count: int) -> GraphModule:
    """x = x + conv(x): one affine region of the whole graph."""
    b = _Builder()
    x = b.x
    for _ in range(count // 3):
        x = b.add(x, b.conv(x))
    return b.done(x)


def norms(count: int) -> GraphModule:
    """Convolution, norm, activation."""
    b = _Builder()
    x = b.x
    for _ in range(count // 7):
        statistics = (b.constant(4) for _ in range(4))
        options = False, 0.1, 1e-5, False
        x = b.relu(b.call(aten.batch_norm.default, b.conv(x), *statistics, *options))
    return b.done(x)


def dense(count: int) -> GraphModule:
    """Each layer reads the last few results, stacked."""
    b = _Builder()
    results = [b.x]
    for _ in range(count // 4):
        stacked = b.call(aten.cat.default, results[-4:], 1)
        weight = b.constant(4, stacked.meta["val"].shape[1], 1, 1)
        results.append(b.relu(b.call(aten.conv2d.default, stacked, weight)))
    return b.done(results[-1])


def nothing(count: int) -> GraphModule:
    """A chain of operators that compute nothing, among others that do."""
    b = _Builder()
    x = b.x
    for number in range(count):
        x = b.call(aten.sin.default, x) if number % 8 == 0 else b.call(aten.mul.Tensor, x, 1.0)
    return b.done(x)


def reshapes(count: int) -> GraphModule:
    """A chain of reshapes, every one of another shape than that before, then of transposes."""
    b = _Builder()
    x = b.x
    for number in range(count // 2):
        x = b.call(aten.reshape.default, x, [36, 4] if number % 2 else [1, 36, 4])
    for _ in range(count // 2):
        x = b.call(aten.transpose.int, x, 0, -1)
    return b.done(x)


def clips(count: int) -> GraphModule:
    """A chain of clips, which is one."""
    b = _Builder()
    x = b.x
    for number in range(count):
        x = b.call(aten.clamp.default, x, -1.0 - number, 1.0 + number)
    return b.done(x)


def constants(count: int) -> GraphModule:
    """Constants computed one from the other, each of them read."""
    b = _Builder()
    x, constant = b.x, b.constant(4, 1, 1)
    for _ in range(count // 3):
        constant = b.call(aten.sin.default, constant)
        x = b.call(aten.mul.Tensor, b.relu(x), constant)
    return b.done(x)


def masks(count: int) -> GraphModule:
    """Constants that differ in one element."""
    b = _Builder()
    x = b.x
    for number in range(count // 3):
        mask = b.constant(1, 4, 6, 6)
        values = b.root.get_buffer(str(mask.target)).zero_()
        values.view(-1)[1] = number
        x = b.call(aten.mul.Tensor, b.relu(x), mask)
    return b.done(x)


def unused(count: int) -> GraphModule:
    """A chain that reaches the output, with a dead end at every node, and a dead chain."""
    b = _Builder()
    x = dead = b.x
    for _ in range(count // 4):
        x = b.call(aten.sin.default, x)
        b.relu(b.relu(x))
        dead = b.relu(dead)
    return b.done(x)


GRAPHS: tuple[Callable[[int], GraphModule], ...] = (
    siblings, activated_siblings, residuals, affine_residuals, norms, dense, nothing, reshapes,
    clips, constants, masks, unused,
)  # fmt: skip


def calls(work: Callable[[], object]) -> int:
    """How many functions some work calls, Python's and C's: a measure that no machine changes."""
    profile = Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())
