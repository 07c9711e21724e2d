"""Rewrites that are wrong on purpose, each in its own way, and whether they are caught.

All faults share one model: each is planted in one of its results, by a pass that replaces what
computes that result. It is caught if the rewrite is undone and every result is right afterwards.

    python -m tests.verify.faults
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn, ops
from torch.fx import GraphModule, Node
from torch.nn import functional

from passfx.graph.editor import Editor, Match
from passfx.graph.evaluate import run_flat
from passfx.graph.query import arguments, constant, is_call, reached
from passfx.passes import Pass
from passfx.pipeline import optimize_graph
from passfx.verify.certificate import CERTIFICATE_TOLERANCE
from passfx.verify.error import relative_error
from tests.helpers import captured, randomize
from tests.passes.strategies import Forms

aten = ops.aten
END = sys.maxsize
Build = Callable[[Editor, Node], Node]


@dataclass(frozen=True)
class Fault:
    """What the model computes, and what a wrong pass makes of the node that returns it."""

    form: Callable[..., Any]
    build: Build


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)
        self.norm, self.layer_norm = nn.BatchNorm2d(4), nn.LayerNorm(9)
        self.linear, self.embedding = nn.Linear(9, 5), nn.Embedding(7, 3)
        randomize(self)
        with torch.no_grad():
            self.tiny = nn.Conv2d(4, 4, 1)
            self.tiny.weight[1] *= 1e-10
            self.tiny.bias[1] *= 1e-10


# Ways to be wrong


def with_arguments(**changes: Any) -> Build:
    """The operator once more, with other arguments."""

    def build(editor: Editor, node: Node) -> Node:
        bound = arguments(node) | changes
        named = {item.name for item in node.target._schema.arguments if item.kwarg_only}
        positional = (item for name, item in bound.items() if name not in named)
        return editor.call(node.target, *positional, **{name: bound[name] for name in named})

    return build


def with_constant(name: str, change: Callable[[Tensor], Tensor]) -> Build:
    """The operator once more, with another constant."""

    def build(editor: Editor, node: Node) -> Node:
        old = constant(arguments(node)[name])
        exact = change(old.double().clone())
        return with_arguments(**{name: editor.constant(exact, old.dtype, name)})(editor, node)

    return build


def other(target: Any, *args: Any) -> Build:
    """Another operator on the same input."""
    return lambda editor, node: editor.call(target, node.args[0], *args)


def swapped(editor: Editor, node: Node) -> Node:
    left, right, *rest = node.args
    return editor.call(node.target, right, left, *rest)


def on_input(target: Any, *args: Any) -> Build:
    """The operator on its input after another operator."""

    def build(editor: Editor, node: Node) -> Node:
        source, *rest = arguments(node).values()
        return editor.call(node.target, editor.call(target, source, *args), *rest)

    return build


def only_at(axis: int, start: int, end: int = END) -> Build:
    """Right, but twice as large in one range of an axis."""

    def build(editor: Editor, node: Node) -> Node:
        right = editor.again(node, {})
        part = editor.call(aten.slice.Tensor, right, axis, start, end)
        double = editor.call(aten.mul.Tensor, part, 2.0)
        return editor.call(aten.slice_scatter.default, right, double, axis, start, end)

    return build


def only_in_the_corner(editor: Editor, node: Node) -> Node:
    right = editor.again(node, {})
    row = editor.call(aten.slice.Tensor, right, 2, -1, END)
    last = editor.call(aten.slice.Tensor, row, 3, -1, END)
    double = editor.call(aten.mul.Tensor, last, 2.0)
    row = editor.call(aten.slice_scatter.default, row, double, 3, -1, END)
    return editor.call(aten.slice_scatter.default, right, row, 2, -1, END)


def only_where(compare: Any, bound: float) -> Build:
    """Right, but 1 where the input compares so with a number."""

    def build(editor: Editor, node: Node) -> Node:
        right = editor.again(node, {})
        where = editor.call(compare, node.args[0], bound)
        return editor.call(aten.masked_fill.Scalar, right, where, 1.0)

    return build


def one_channel(factor: float, channel: int = 1) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight[channel] *= factor
        return weight

    return change


def parts_of(change: Callable[[list[Node]], list[Node]]) -> Build:
    """A concatenation of other parts."""
    return lambda editor, node: editor.call(node.target, change(node.args[0]), *node.args[1:])


def padded(mode: str) -> Build:
    """A convolution whose padding is no zeros."""

    def build(editor: Editor, node: Node) -> Node:
        source = editor.call(aten.pad.default, node.args[0], [1, 1, 1, 1], mode)
        return with_arguments(input=source, padding=[0, 0])(editor, node)

    return build


def uneven(editor: Editor, node: Node) -> Node:
    source = editor.call(aten.constant_pad_nd.default, node.args[0], [2, 0, 1, 1], 0.0)
    return with_arguments(input=source, padding=[0, 0])(editor, node)


def bias_through_padding(editor: Editor, node: Node) -> Node:
    """conv(x + 1) as conv(x) + ΣW, as if the padding held ones as well."""
    weight = constant(arguments(node)["weight"]).double()
    shift = weight.sum((1, 2, 3)).reshape(1, -1, 1, 1)
    result = with_arguments(input=node.args[0].args[0])(editor, node)
    return editor.call(aten.add.Tensor, result, editor.constant(shift, torch.float32, "shift"))


def rounded(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.to(dtype).double()


def alias(weight: Tensor) -> Tensor:
    weight[1] = weight[0]
    return weight


def not_a_number(editor: Editor, node: Node) -> Node:
    return editor.call(aten.pow.Tensor_Scalar, node.args[0], 0.5)


def conv(m: Parts, x: Tensor, *_: Tensor) -> Tensor:
    return m.conv(x)


def strided(m: Parts, x: Tensor, *_: Tensor) -> Tensor:
    return m.strided(x)


def norm(m: Parts, x: Tensor, *_: Tensor) -> Tensor:
    return m.norm(x)


def relu(m: Parts, x: Tensor, *_: Tensor) -> Tensor:
    return torch.relu(x)


def relu6(m: Parts, x: Tensor, *_: Tensor) -> Tensor:
    return functional.relu6(m.conv(x) * 1e-3)


FAULTS: dict[str, Fault] = {
    # convolutions
    "wrong sign": Fault(conv, with_constant("weight", torch.neg)),
    "padding on one side": Fault(conv, uneven),
    "padding of other values": Fault(conv, padded("reflect")),
    "padding that repeats the border": Fault(conv, padded("replicate")),
    "stride off by one": Fault(strided, on_input(aten.roll.default, [1], [3])),
    "wrong dilation": Fault(conv, with_arguments(dilation=[2, 2], padding=[2, 2])),
    "groups swapped": Fault(
        lambda m, x, *_: m.grouped(x), with_constant("weight", lambda w: w.roll(2, 0))
    ),
    "dropped bias": Fault(conv, with_arguments(bias=None)),
    "transposed kernel": Fault(conv, with_constant("weight", lambda w: w.transpose(2, 3))),
    "flipped kernel": Fault(conv, with_constant("weight", lambda w: w.flip(2, 3))),
    "swapped channels of the kernel": Fault(
        conv, with_constant("weight", lambda w: w.transpose(0, 1))
    ),
    "two channels aliased": Fault(conv, with_constant("weight", alias)),
    "wrong scale in one channel": Fault(conv, with_constant("weight", one_channel(1 + 1e-6))),
    "wrong sign in a tiny channel": Fault(
        lambda m, x, *_: m.tiny(x), with_constant("weight", one_channel(-1.0))
    ),
    "constant rounded to float32": Fault(
        lambda m, x, *_: m.conv(x) / 3.0,
        lambda editor, node: editor.call(
            aten.mul.Tensor, node.args[0], float(torch.tensor(1 / 3, dtype=torch.float32))
        ),
    ),
    "constant rounded to bfloat16": Fault(conv, with_constant("weight", rounded(torch.bfloat16))),
    "bias through zero padding": Fault(lambda m, x, *_: m.conv(x + 1.0), bias_through_padding),
    "transposed convolution as its plain one": Fault(
        lambda m, x, *_: m.up(x), with_constant("weight", lambda w: w.flip(2, 3))
    ),
    "output padding on the other side": Fault(
        lambda m, x, *_: m.up(x),
        lambda editor, node: editor.call(aten.flip.default, editor.again(node, {}), [2, 3]),
    ),
    "rows of a linear layer permuted": Fault(
        lambda m, x, *_: m.linear(x), with_constant("weight", lambda w: w.roll(1, 0))
    ),
    # norms
    "wrong eps": Fault(norm, with_arguments(eps=2e-5)),
    "wrong eps of a layer norm": Fault(lambda m, x, *_: m.layer_norm(x), with_arguments(eps=2e-5)),
    "variance as deviation": Fault(norm, with_constant("running_var", torch.sqrt)),
    "sign of the mean": Fault(norm, with_constant("running_mean", torch.neg)),
    "order of the scales": Fault(norm, with_constant("weight", lambda w: w.roll(1))),
    # pools, pads, interpolation, sums
    "padding counted": Fault(
        lambda m, x, *_: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        with_arguments(count_include_pad=True),
    ),
    "rounded up": Fault(
        lambda m, x, *_: functional.avg_pool2d(x, 3, 2, 1), with_arguments(ceil_mode=True)
    ),
    "wrong divisor": Fault(
        lambda m, x, *_: functional.avg_pool2d(x, 3), with_arguments(divisor_override=8)
    ),
    "maximum as average": Fault(
        lambda m, x, *_: functional.max_pool2d(x, 3), other(aten.avg_pool2d.default, [3, 3])
    ),
    "mean over the other axis": Fault(lambda m, x, *_: x.mean(2), with_arguments(dim=[3])),
    "corners aligned": Fault(
        lambda m, x, *_: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
        with_arguments(align_corners=True),
    ),
    "nearest, but exact": Fault(
        lambda m, x, *_: functional.interpolate(x, scale_factor=1.5, mode="nearest"),
        lambda editor, node: editor.call(
            aten._upsample_nearest_exact2d.vec, *arguments(node).values()
        ),
    ),
    "reflected, not repeated": Fault(
        lambda m, x, *_: functional.pad(x, (1, 1, 1, 1), "replicate"),
        with_arguments(mode="reflect"),
    ),
    "term missing in a cat": Fault(
        lambda m, x, y, *_: torch.cat([x, y], 1), parts_of(lambda parts: [parts[0]] * 2)
    ),
    "order of a cat": Fault(
        lambda m, x, y, *_: torch.cat([x, y], 1), parts_of(lambda parts: parts[::-1])
    ),
    "order of the inputs": Fault(lambda m, x, y, *_: x - y, swapped),
    "factor of a sum": Fault(lambda m, x, y, *_: torch.add(x, y, alpha=2), with_arguments(alpha=1)),
    "rsub as sub": Fault(
        lambda m, x, y, *_: torch.rsub(x, y), lambda e, n: e.call(aten.sub.Tensor, *n.args)
    ),
    # activations and ranges of values
    "relu6 as relu": Fault(lambda m, x, *_: functional.relu6(x), other(aten.relu.default)),
    "relu6 after small values as relu": Fault(relu6, other(aten.relu.default)),
    "clip bound slightly off": Fault(
        lambda m, x, *_: x.clamp(-3.0, 70.0), with_arguments(max=70.01)
    ),
    "negative inputs only": Fault(relu, other(aten.leaky_relu.default, 1e-3)),
    "large inputs only": Fault(relu, other(aten.clamp.default, 0.0, 7.9)),
    "for exact 0 only": Fault(relu, only_where(aten.eq.Scalar, 0.0)),
    "not a number for half of the inputs": Fault(relu, not_a_number),
    "gelu by tanh": Fault(lambda m, x, *_: functional.gelu(x), with_arguments(approximate="tanh")),
    "another function": Fault(lambda m, x, *_: x.sin(), other(aten.tanh.default)),
    # positions
    "from row 20 on": Fault(relu, only_at(2, 20)),
    "from column 20 on": Fault(relu, only_at(3, 20)),
    "from row 20 of a strided result on": Fault(strided, only_at(2, 20)),
    "from sample 6 on": Fault(relu, only_at(0, 6)),
    "border only": Fault(relu, only_at(2, 0, 1)),
    "last column only": Fault(relu, only_at(3, -1)),
    "corner only": Fault(relu, only_in_the_corner),
    # integers and booleans
    "x·x as x": Fault(lambda m, x, y, n, *_: n * n, lambda editor, node: node.args[0]),
    "large integers only": Fault(
        lambda m, x, y, n, *_: n.clamp(-1000, 1000), lambda editor, node: node.args[0]
    ),
    "rounding of negative integers": Fault(
        lambda m, x, y, n, *_: torch.div(n, 3, rounding_mode="floor"),
        with_arguments(rounding_mode="trunc"),
    ),
    "and as or": Fault(
        lambda m, x, y, n, i, b: b & (x > 0),
        lambda editor, node: editor.call(aten.bitwise_or.Tensor, *node.args),
    ),
    "rows of an embedding": Fault(
        lambda m, x, y, n, i, b: m.embedding(i), with_constant("weight", lambda w: w.flip(0))
    ),
    # types
    "wrong dtype": Fault(lambda m, x, *_: x.exp(), other(aten._to_copy.default)),
    "wrong shape": Fault(relu, other(aten.max_pool2d.default, [2, 2])),
}


def inputs() -> tuple[Tensor, ...]:
    """Floating, floating, integers, indices, booleans."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 4, 9, 9, generator=generator) for _ in range(2))
    return x, y, torch.arange(-9, 9).reshape(2, 9), torch.tensor([0, 1, 2]), x > 0.5


@cache
def program() -> Any:
    """The model, captured once."""
    torch.manual_seed(0)
    model = Forms({name: fault.form for name, fault in FAULTS.items()}, Parts())
    return captured(model, *inputs())


class Planted(Pass):
    """Replaces what computes one result of the model."""

    name = "planted"

    def __init__(self, position: int, build: Build) -> None:
        self.position = position
        self.build = build

    def match(self, node: Node) -> Match | None:
        results = node.graph.output_node().args[0]
        if node is not results[self.position]:
            return None
        inside = tuple(
            item for item in reached(node, lambda item: item.all_input_nodes) if is_call(item)
        )
        return Match(node, inside, "planted")

    def rewrite(self, editor: Editor, match: Match) -> Node:
        return self.build(editor, match.at)


def is_caught(name: str) -> bool:
    """Whether the rewrite is undone, and every result is right."""
    wrong = Planted([*FAULTS].index(name), FAULTS[name].build)
    graph_module, (report,) = optimize_graph(program(), [wrong])
    undone = [refusal for refusal in report.refusals if refusal.undone]
    return len(undone) == 1 and not report.rewrites and _is_right(graph_module)


def _is_right(graph_module: GraphModule) -> bool:
    pairs = zip(run_flat(graph_module, inputs()), _reference(), strict=True)
    return all(relative_error(new, old) <= CERTIFICATE_TOLERANCE for new, old in pairs)


@cache
def _reference() -> tuple[Any, ...]:
    return run_flat(program().graph_module, inputs())


def main() -> None:
    """Print what got through, and caught / planted."""
    missed = [name for name in FAULTS if not is_caught(name)]
    for name in missed:
        print(f"got through: {name}")
    print(f"{len(FAULTS) - len(missed)} / {len(FAULTS)} planted faults caught")


if __name__ == "__main__":
    main()
