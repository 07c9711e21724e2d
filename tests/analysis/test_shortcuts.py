"""Shortcuts: what is found in known networks, and that what is called affine is affine."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models.digits import RepVGGBlock, digits_resnet
from models.pass_layer import PassCNN, PassCNNAdd, PassVariants, ResidualBlock
from models.resnet import resnet18, resnet50
from passfx.analysis.shortcuts import Shortcut, find_shortcuts, is_affine
from passfx.capture.program import capture
from passfx.graph.evaluate import run_flat
from passfx.graph.query import is_constant
from passfx.verify.error import relative_error
from tests.helpers import captured, randomize


class Function(nn.Module):
    """A module with some constants to compute with, around a function of it and its inputs."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.channel = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.dropout = nn.Dropout(0.5)
        randomize(self)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.body(self, x, y)


def image(*shape: int) -> Tensor:
    return torch.randn(shape)


def shortcuts(model: nn.Module, *args: Any) -> tuple[Shortcut, ...]:
    return find_shortcuts(captured(model, *args).graph_module)


def of_function(body: Callable[[Function, Tensor, Tensor], Any]) -> tuple[Shortcut, ...]:
    return shortcuts(Function(body), image(2, 4, 6, 6), image(2, 4, 6, 6))


def kinds(found: tuple[Shortcut, ...]) -> dict[str, int]:
    return dict(Counter(item.kind for item in found))


def operators(names: tuple[str, ...]) -> list[str]:
    return [name.rstrip("0123456789").rstrip("_") for name in names]


# Known networks.


@pytest.mark.parametrize("variant", ["v1", "v1.5", "d", "preact"])
def test_resnet18(variant: str) -> None:
    found = shortcuts(resnet18(variant), image(1, 3, 64, 64))
    assert kinds(found) == {"identity": 5, "projection": 3}
    assert [item.kind for item in found] == 2 * ["identity"] + 3 * ["projection", "identity"]
    assert all(item.merge_op == "add" and not item.collapsible for item in found)
    assert [item.module for item in found] == [
        f"stages.{stage}.{block}" for stage in range(4) for block in range(2)
    ]
    paths = [operators(item.path) for item in found]
    projection = {
        "v1": ["conv2d", "batch_norm"],
        "v1.5": ["conv2d", "batch_norm"],
        "d": ["avg_pool2d", "conv2d", "batch_norm"],
        "preact": ["conv2d"],
    }[variant]
    assert paths == 2 * [[]] + 3 * [projection, []]
    identity_body = ["conv2d", "batch_norm", "relu", "conv2d", "batch_norm"]
    if variant == "preact":
        identity_body = ["batch_norm", "relu", "conv2d", "batch_norm", "relu", "conv2d"]
    assert operators(found[0].body) == identity_body


def test_the_fork_of_a_preactivated_projection_is_the_activation() -> None:
    found = shortcuts(resnet18("preact"), image(1, 3, 64, 64))
    forks: dict[str, set[str]] = {"identity": set(), "projection": set()}
    for item in found:
        forks[item.kind] |= {*operators((item.fork,))}
    assert forks == {"identity": {"max_pool2d", "add"}, "projection": {"relu"}}


def test_resnet50() -> None:
    found = shortcuts(resnet50("preact"), image(1, 3, 64, 64))
    assert kinds(found) == {"identity": 12, "projection": 4}


def test_timm_resnet50d() -> None:
    timm = pytest.importorskip("timm")
    found = shortcuts(timm.create_model("resnet50d"), image(1, 3, 64, 64))
    assert kinds(found) == {"identity": 12, "projection": 4}
    averaged = [item for item in found if "avg_pool2d" in operators(item.path)]
    assert len(averaged) == 3


@pytest.mark.slow  # the golden reports of both have every shortcut, too
@pytest.mark.parametrize("name", ["nfnet_l0", "resnetv2_50x1_bit"])
def test_projections_whose_weights_are_computed_from_constants(name: str) -> None:
    timm = pytest.importorskip("timm")
    found = shortcuts(timm.create_model(name), image(1, 3, 64, 64))
    assert kinds(found)["projection"] == 4
    for item in found:
        if item.kind == "projection":
            assert set(operators(item.path)) <= {"avg_pool2d", "conv2d"}


def test_pass_cnn_has_none_because_its_branch_is_dead() -> None:
    assert shortcuts(PassCNN(), image(1, 3, 8, 8)) == ()


def test_pass_cnn_add() -> None:
    (found,) = shortcuts(PassCNNAdd(), image(1, 3, 8, 8))
    assert found == Shortcut(
        kind="projection",
        merge_op="add",
        fork="x",
        merge="add",
        module="",
        path=found.path,
        body=found.body,
        collapsible=False,
    )
    assert operators(found.path) == ["conv2d", "batch_norm"]
    assert operators(found.body) == ["conv2d", "batch_norm", "relu"]


@pytest.mark.parametrize(("channels", "kind"), [(3, "identity"), (5, "projection")])
def test_residual_block(channels: int, kind: str) -> None:
    (found,) = shortcuts(ResidualBlock(3, channels), image(1, 3, 8, 8))
    assert found.kind == kind
    assert len(found.body) == 5


def test_pass_variants_clamp_is_no_shortcut() -> None:
    found = shortcuts(PassVariants(), image(1, 8, 6, 6))
    assert [(item.kind, item.module, operators(item.path)) for item in found] == [
        ("projection", "scaled", ["mul"]),
        ("projection", "normalised", ["batch_norm"]),
        ("identity", "passed", []),
    ]


def test_repvgg_block_is_collapsible() -> None:
    first, second = shortcuts(RepVGGBlock(4), image(1, 4, 8, 8))
    assert (first.kind, first.collapsible) == ("projection", True)
    assert (second.kind, second.collapsible) == ("projection", True)
    assert operators(second.path) == ["batch_norm"]
    assert len(second.body) == 5  # two convolutions with their norms, and their sum
    assert first.merge in second.body


def test_digits() -> None:
    found = shortcuts(digits_resnet(), image(1, 1, 8, 8))
    assert kinds(found) == {"projection": 8, "identity": 2}
    assert sum(item.collapsible for item in found) == 6


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def test_a_pre_norm_transformer_block_has_two_identities() -> None:
    first, second = shortcuts(TransformerBlock(), image(2, 5, 8))
    assert (first.kind, first.fork, first.path, first.collapsible) == ("identity", "x", (), False)
    assert (second.kind, second.fork, second.path) == ("identity", first.merge, ())
    assert operators(second.body)[:3] == ["layer_norm", "linear", "gelu"]


# One merge at a time.


def test_a_difference_is_a_merge() -> None:
    (found,) = of_function(lambda m, x, y: x - m.conv(x).relu())
    assert (found.kind, found.merge_op, found.fork) == ("identity", "sub", "x")


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x, y: x + x,
        lambda m, x, y: x + x.clone(),
        lambda m, x, y: x + m.dropout(x).contiguous(),
        lambda m, x, y: x + 1,
        lambda m, x, y: m.conv(x) + m.channel,
        lambda m, x, y: x.relu() + m.channel.sigmoid(),
        lambda m, x, y: x + y,
        lambda m, x, y: m.conv(x) + y.relu(),
        lambda m, x, y: x.relu() + x.sigmoid(),
        lambda m, x, y: m.conv(x).relu() + x.clamp(0, 6),
        lambda m, x, y: m.conv(x).relu() + m.norm(x).relu(),
        lambda m, x, y: x.relu() + x.to(torch.int32),
        lambda m, x, y: x.relu() + x / x,
        lambda m, x, y: x.relu() + x * x,
        lambda m, x, y: x.relu() + x * x.mean(),
        lambda m, x, y: x.relu() + F.conv2d(x, x[:1, :, :1, :1].repeat(4, 1, 1, 1)),
    ],
)  # fmt: skip
def test_no_shortcut(body: Callable[..., Any]) -> None:
    assert of_function(body) == ()


@pytest.mark.parametrize(
    "skip",
    [
        lambda m, x: x,
        lambda m, x: m.dropout(x),
        lambda m, x: x.contiguous().clone(),
        lambda m, x: x.to(torch.float32),
        lambda m, x: x.view(2, 4, 6, 6),
        lambda m, x: x[:, :],
        lambda m, x: x.detach(),
    ],
)
def test_identities(skip: Callable[..., Any]) -> None:
    (found,) = of_function(lambda m, x, y: m.conv(x).relu() + skip(m, x))
    assert found.kind == "identity"
    assert operators(found.body) == ["conv2d", "relu"]


@pytest.mark.parametrize(
    "skip",
    [
        lambda m, x: m.other(x),
        lambda m, x: m.norm(m.other(x)),
        lambda m, x: x * m.channel,
        lambda m, x: m.channel.exp() * x - 1,
        lambda m, x: 1 - x,
        lambda m, x: F.avg_pool2d(x, 3, 1, 1),
        lambda m, x: F.conv2d(x, m.other.weight / m.other.weight.norm()),
        lambda m, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0),
        lambda m, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="nearest-exact"),
        lambda m, x: F.interpolate(x, size=(6, 6), mode="bilinear", antialias=True),
        lambda m, x: torch.cat([x[:, 2:], x[:, :2]], 1),
        lambda m, x: F.pad(x[..., 1:], (1, 0)),
        lambda m, x: x.transpose(2, 3),
        lambda m, x: x.flip(1).to(torch.float64).float(),
        lambda m, x: x.mean((2, 3), keepdim=True),
    ],
)
def test_projections(skip: Callable[..., Any]) -> None:
    (found,) = of_function(lambda m, x, y: m.conv(x).relu().mean((2, 3), True) + skip(m, x))
    assert found.kind == "projection"
    assert found.path
    assert operators(found.body) == ["conv2d", "relu", "mean"]


def test_two_affine_branches_are_collapsible() -> None:
    (found,) = of_function(lambda m, x, y: m.norm(m.conv(x)) - m.other(x))
    assert (found.kind, found.collapsible) == ("projection", True)
    assert operators(found.path) == ["conv2d"]
    (found,) = of_function(lambda m, x, y: x + m.conv(x))
    assert (found.kind, found.collapsible) == ("identity", True)


def test_a_unet_joins_its_skip_over_everything_between() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        encoded = m.conv(x).relu()
        deeper = m.other(F.max_pool2d(encoded, 2)).relu()
        return encoded + F.interpolate(deeper, scale_factor=2.0)

    (found,) = of_function(body)
    assert (found.kind, found.fork) == ("identity", "relu")
    assert operators(found.body) == ["max_pool2d", "conv2d", "relu", "upsample_nearest2d"]


def test_shortcuts_nest() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        x = x.relu()
        inner = x + m.conv(x).relu()
        outer = m.other(inner).relu() + inner
        return outer + x

    inner, outer, whole = of_function(body)
    assert (inner.fork, outer.fork, whole.fork) == ("relu", inner.merge, "relu")
    assert {item.kind for item in (inner, outer, whole)} == {"identity"}
    assert inner.merge in whole.body and outer.merge in whole.body


def test_a_fork_is_below_whatever_both_branches_share() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        shared = m.conv(x).relu()
        return m.other(shared).relu() + m.norm(shared)

    (found,) = of_function(body)
    assert (found.fork, found.kind) == ("relu", "projection")


def test_a_merge_in_one_of_two_inputs_branches() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        joined = x + y
        return m.conv(joined).relu() + joined

    (found,) = of_function(body)
    assert (found.kind, found.fork, found.merge) == ("identity", "add", "add_1")


def test_a_branch_that_mixes_in_another_input_shares_no_fork() -> None:
    assert of_function(lambda m, x, y: x + m.conv(x + y).relu()) == ()


def test_parts_of_a_split_fork_where_it_was_split() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left + right.relu()

    (found,) = of_function(body)
    assert (found.kind, found.fork) == ("projection", "x")
    assert len(found.path) == 2 and len(found.body) == 3


def test_a_part_of_a_split_is_a_fork() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        left, right = x.split([1, 3], 1)
        return torch.cat([left, right + right.relu()], 1)

    (found,) = of_function(body)
    assert (found.kind, operators((found.fork,))) == ("identity", ["getitem"])


def test_sizes_of_dynamic_dimensions_are_constants() -> None:
    def body(m: Function, x: Tensor, y: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.reshape(batch * height, channels * width) * 2
        return m.conv(x).relu() + tokens.reshape(batch, channels, height, width) * batch

    shapes = {"x": {0: Dim.DYNAMIC}, "y": None}
    found = capture(
        Function(body), (image(2, 4, 6, 6), image(2, 4, 6, 6)), dynamic_shapes=shapes
    ).graph_module
    (shortcut,) = find_shortcuts(found)
    assert shortcut.kind == "projection"


# What is called affine is affine, on numbers.

AFFINE: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "conv2d": lambda m, x: m.conv(x),
    "conv1d": lambda m, x: F.conv1d(x.flatten(2), m.conv.weight[..., 0], m.conv.bias),
    "conv3d": lambda m, x: F.conv3d(x[:, :, None], m.conv.weight[:, :, None]),
    "conv_transpose2d": lambda m, x: F.conv_transpose2d(x, m.conv.weight, m.conv.bias, stride=2),
    "linear": lambda m, x: F.linear(x, torch.ones(3, 6)),
    "matmul": lambda m, x: x @ m.conv.weight.reshape(6, 24),
    "matmul left": lambda m, x: m.conv.weight.reshape(24, 6) @ x,
    "batch_norm": lambda m, x: m.norm(x),
    "batch_norm without affine": lambda m, x: F.batch_norm(
        x, m.norm.running_mean, m.norm.running_var),
    "add": lambda m, x: x + m.channel,
    "add of itself": lambda m, x: torch.add(x, x, alpha=3),
    "sub": lambda m, x: m.channel - x,
    "rsub": lambda m, x: 2 - x,
    "neg": lambda m, x: -x,
    "mul": lambda m, x: x * m.channel,
    "mul left": lambda m, x: m.channel * x,
    "mul number": lambda m, x: x * 3,
    "div": lambda m, x: x / m.channel,
    "pad": lambda m, x: F.pad(x, (1, 2), value=3.0),
    "pad reflect": lambda m, x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "pad replicate": lambda m, x: F.pad(x, (1, 2, 1, 1), mode="replicate"),
    "pad circular": lambda m, x: F.pad(x, (1, 2, 1, 1), mode="circular"),
    "avg_pool2d": lambda m, x: F.avg_pool2d(x, 2, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda m, x: F.adaptive_avg_pool2d(x, 4),
    "mean": lambda m, x: x.mean((2, 3)),
    "sum": lambda m, x: x.sum(1),
    "reshape": lambda m, x: x.reshape(2, -1),
    "permute": lambda m, x: x.permute(0, 2, 3, 1),
    "transpose": lambda m, x: x.mT,
    "squeeze": lambda m, x: x.unsqueeze(0).squeeze(0),
    "slice": lambda m, x: x[:, 1:, ::2],
    "select": lambda m, x: x[:, 1],
    "index_select": lambda m, x: x.index_select(1, torch.tensor([2, 0])),
    "expand": lambda m, x: x[None].expand(3, -1, -1, -1, -1),
    "repeat": lambda m, x: x.repeat(1, 2, 1, 1),
    "roll": lambda m, x: x.roll(1, 2),
    "flip": lambda m, x: x.flip(2),
    "cat": lambda m, x: torch.cat([x, m.conv(x), m.channel.expand(2, -1, 6, 6)], 1),
    "stack": lambda m, x: torch.stack([x, 2 * x]),
    "split": lambda m, x: x.split(3, 1)[0],
    "chunk": lambda m, x: x.chunk(2, 1)[1],
    "tensor_split": lambda m, x: x.tensor_split(3, 1)[0],
    "unbind": lambda m, x: x.unbind(1)[1],
    "pixel_shuffle": lambda m, x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda m, x: F.pixel_unshuffle(x, 2),
    "upsample nearest": lambda m, x: F.interpolate(x, scale_factor=2.0),
    "upsample bilinear": lambda m, x: F.interpolate(x, size=(7, 9), mode="bilinear"),
    "upsample bicubic": lambda m, x: F.interpolate(x, size=(7, 9), mode="bicubic"),
    "upsample linear": lambda m, x: F.interpolate(x.flatten(2), size=9, mode="linear"),
    "upsample nearest-exact": lambda m, x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
    "upsample nearest-exact, 1d": lambda m, x: F.interpolate(
        x.flatten(2), size=9, mode="nearest-exact"),
    "upsample nearest-exact, 3d": lambda m, x: F.interpolate(
        x[None], size=(5, 7, 9), mode="nearest-exact"),
    "upsample bilinear, antialiased": lambda m, x: F.interpolate(
        x, size=(4, 3), mode="bilinear", antialias=True),
    "upsample bicubic, antialiased": lambda m, x: F.interpolate(
        x, size=(4, 9), mode="bicubic", antialias=True),
    "clone": lambda m, x: x.clone(),
    "to": lambda m, x: x.to(torch.float64),
}  # fmt: skip

NOT_AFFINE: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "mul by itself": lambda m, x: x * x,
    "mul by a function of itself": lambda m, x: x * x.mean(),
    "div by itself": lambda m, x: (x + 9) / (x + 9).mean(1, True),
    "div of itself": lambda m, x: x / x,
    "div by the input": lambda m, x: m.channel / x,
    "div floor": lambda m, x: torch.div(x, 0.3, rounding_mode="floor"),
    "div trunc": lambda m, x: torch.div(x, 0.3, rounding_mode="trunc"),
    "batch_norm of the batch": lambda m, x: F.batch_norm(x, None, None, training=True),
    "batch_norm scaled by the input": lambda m, x: F.batch_norm(
        x, m.norm.running_mean, m.norm.running_var, weight=x[0, :, 0, 0]),
    "conv2d with the input's weight": lambda m, x: F.conv2d(
        x, x[:1, :, :3, :3].expand(4, 4, 3, 3)),
    "conv2d by itself": lambda m, x: F.conv2d(x, x),
    "linear by itself": lambda m, x: F.linear(x, x[0, 0]),
    "linear of itself": lambda m, x: F.linear(x[0, 0], x[0, 0]),
    "matmul by itself": lambda m, x: x @ x,
    "relu": lambda m, x: x.relu(),
    "clamp": lambda m, x: x.clamp(0, 1),
    "abs": lambda m, x: x.abs(),
    "pow": lambda m, x: x**2,
    "max_pool2d": lambda m, x: F.max_pool2d(x, 2),
    "max": lambda m, x: x.max(1)[0],
    "layer_norm": lambda m, x: F.layer_norm(x, (6,)),
    "group_norm": lambda m, x: F.group_norm(x, 2),
    "softmax": lambda m, x: x.softmax(1),
    "to integers": lambda m, x: (x * 9).to(torch.int32),
    "to booleans": lambda m, x: x.to(torch.bool),
    "sum of integers": lambda m, x: (x * 9).sum(1, dtype=torch.int64),
    "where": lambda m, x: torch.where(x > 0, x, 2 * x),
    "index_select by the input": lambda m, x: x.index_select(1, (x[0, :, 0, 0] > 0).int()),
    "view as another dtype": lambda m, x: x.view(torch.float16).float(),
}  # fmt: skip


def graph_of(body: Callable[[Function, Tensor], Tensor]) -> tuple[Any, bool]:
    """The captured graph, and whether each of its operators counts as affine."""
    found = captured(Function(lambda m, x, y: body(m, x)), image(2, 4, 6, 6), image(1)).graph_module
    variables: set[Any] = set()
    answers = []
    for node in found.graph.nodes:
        if node.op == "placeholder" and node.name == "x":
            variables.add(node)
        elif node.op == "call_function" and variables & set(node.all_input_nodes):
            answers.append(is_affine(node, variables))
            variables.add(node)
        else:
            assert is_constant(node) or not variables & set(node.all_input_nodes) or (
                node.op == "output"
            )  # fmt: skip
    assert answers
    return found, all(answers)


def midpoint_error(graph: Any) -> float:
    """How far f((x + y) / 2) is from (f(x) + f(y)) / 2 in float64; 0 for an affine f."""
    x, y = (torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2))
    middle, at_x, at_y = (run_flat(graph, [item, image(1)])[0] for item in ((x + y) / 2, x, y))
    if not middle.is_floating_point():
        middle, at_x, at_y = middle.double(), at_x.double(), at_y.double()
    return relative_error(middle, (at_x + at_y) / 2)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operators_are_affine(name: str) -> None:
    graph, affine = graph_of(AFFINE[name])
    assert affine
    assert midpoint_error(graph) <= 1e-12


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_other_operators_are_not(name: str) -> None:
    graph, affine = graph_of(NOT_AFFINE[name])
    assert not affine
    if name not in ("div of itself", "to booleans", "view as another dtype"):
        assert midpoint_error(graph) > 1e-6  # the example is not affine by chance
