"""Blocks and models that are sums of branches become the convolutions that they equal."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import passfx
from models import reparam
from passfx.graph.query import arguments, op_name, operators
from passfx.jobs.optimize import Optimized
from tests.helpers import ops, randomize

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def optimize(model: nn.Module, *shape: int) -> Optimized:
    """Optimise a model with random norms, and with parity proven."""
    optimized = passfx.optimize(randomize(model), (torch.randn(*shape),))
    report = optimized.report
    assert report.parity is not None and report.parity.passed
    assert not any(run.rolled_back for run in report.passes)
    return optimized


def groups(graph_module: GraphModule) -> list[int]:
    """The groups of every convolution, in order."""
    return [
        arguments(node)["groups"] for node in operators(graph_module) if op_name(node) == "conv2d"
    ]


def is_convolution_and_skip(node: Node) -> bool:
    """Whether a node is x + conv(x)."""
    pairs = permutations(node.all_input_nodes, 2) if op_name(node) == "add" else ()
    return any(op_name(a) == "conv2d" and b in a.all_input_nodes for a, b in pairs)


# The block, and the groups of the one convolution that it becomes.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "repvgg": (lambda: reparam.RepVGGBlock(4, 4), 1),
    "repvgg_stride": (lambda: reparam.RepVGGBlock(4, 6, stride=2), 1),
    "repvgg_groups": (lambda: reparam.RepVGGBlock(4, 4, groups=2), 2),
    "mobileone_depthwise": (lambda: reparam.MobileOneBlock(4, 4, 3, groups=4), 4),
    "mobileone_stride": (lambda: reparam.MobileOneBlock(4, 4, 3, stride=2, groups=4), 4),
    "mobileone_pointwise": (lambda: reparam.MobileOneBlock(4, 6, 1), 1),
    "acblock_3_1": (lambda: reparam.ACBlock(4, 6, 3, 1), 1),
    "acblock_3_0": (lambda: reparam.ACBlock(4, 6, 3, 0), 1),
    "acblock_5_1": (lambda: reparam.ACBlock(4, 6, 5, 1), 1),
    "acblock_stride": (lambda: reparam.ACBlock(4, 6, 5, 1, stride=2), 1),
    "diverse": (lambda: reparam.DiverseBranchBlock(4, 4), 1),
    "diverse_groups": (lambda: reparam.DiverseBranchBlock(4, 4, groups=4), 4),
    "diverse_groups_stride": (lambda: reparam.DiverseBranchBlock(4, 8, groups=4, stride=2), 4),
    "diverse_stride": (lambda: reparam.DiverseBranchBlock(4, 6, 5, stride=2), 1),
    "edge": (lambda: reparam.EdgeBlock(4, 6), 1),
    "edge_identity": (lambda: reparam.EdgeBlock(4, 4, identity=True), 1),
    "alpha": (lambda: reparam.AlphaBlock(4, 6), 1),
    "qarepvgg": (lambda: reparam.QARepVGGBlock(4, 4), 1),
    "qarepvgg_stride": (lambda: reparam.QARepVGGBlock(4, 6, stride=2), 1),
    "repmixer": (lambda: reparam.RepMixer(4), 4),
    "dilated": (lambda: reparam.DilatedBlock(4), 4),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_one_convolution(name: str) -> None:
    build, kept = BLOCKS[name]
    optimized = optimize(build(), 2, 4, 11, 14)
    assert sum(ops(optimized.captured.graph_module).values()) > 3
    assert ops(optimized.module) == {"conv2d": 1}
    assert groups(optimized.module) == [kept]


class FilledBorder(nn.Module):
    """1x1 + norm, a border of the norm's value at 0, 3x3 + norm, as DBB's authors wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = reparam.conv_norm(4, 4, 1)
        self.second = reparam.conv_norm(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.first[1]
        border = norm.bias - norm.running_mean * norm.weight / torch.sqrt(
            norm.running_var + norm.eps
        )
        border = border.view(1, -1, 1, 1)
        padded = functional.pad(self.first(x), (1, 1, 1, 1))
        padded[:, :, 0:1, :] = border
        padded[:, :, -1:, :] = border
        padded[:, :, :, 0:1] = border
        padded[:, :, :, -1:] = border
        out: Tensor = self.second(padded)
        return out


def test_a_border_that_is_written_in_place_becomes_padding() -> None:
    assert ops(optimize(FilledBorder(), 2, 4, 11, 14).module) == {"conv2d": 1}


def test_a_bias_before_a_zero_border_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    optimized = optimize(model, 2, 4, 11, 14)
    assert ops(optimized.module) == {"conv2d": 2}
    (run,) = [run for run in optimized.report.passes if run.name == "collapse"]
    (refusal,) = run.refusals
    assert refusal.at == "conv2d_1"
    assert refusal.reason == (
        "its padding is zeros where the operator before, past the border, has values"
    )


# The model, the size of its input, the exact counts and the greatest counts afterwards.
MODELS: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "repvgg_a0": (32, {"conv2d": 22, "add": 0}, {}),
    "repvgg_b1g4": (32, {"conv2d": 28, "add": 0}, {}),
    "mobileone_s0": (32, {"conv2d": 43, "add": 0}, {}),
    "fastvit_t8": (64, {"conv2d": 52, "mul": 1}, {}),  # of squeeze and excite, not LayerScale
    "repvit_m0_9": (64, {"conv2d": 103, "linear": 1}, {}),
    "repghostnet_050": (64, {}, {"conv2d": 95}),
    "ghostnetv3_100": (64, {}, {"conv2d": 137}),
    "efficientvit_m0": (224, {"add": 40}, {"conv2d": 116}),
    "levit_128s": (224, {"linear": 47, "conv2d": 4}, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_layers_of_its_deployed_form(name: str) -> None:
    size, exact, most = MODELS[name]
    optimized = optimize(timm.create_model(name, num_classes=7), 1, 3, size, size)
    before, after = ops(optimized.captured.graph_module), ops(optimized.module)
    assert before["batch_norm"] > 0 and after["batch_norm"] == 0
    assert {key: after[key] for key in exact} == exact
    assert all(after[key] <= count for key, count in most.items())
    assert after["conv2d"] <= before["conv2d"]
    if name == "ghostnetv3_100":  # its short_conv chain: biased, with zero borders
        reasons = [item.reason for run in optimized.report.passes for item in run.refusals]
        assert "the bias of the operator before would leak over its zero padding" in reasons
    assert not any(map(is_convolution_and_skip, operators(optimized.module)))
    grouped = {count for count in groups(optimized.captured.graph_module) if count > 1}
    assert {count for count in groups(optimized.module) if count > 1} == grouped


def test_depthwise_convolutions_stay_depthwise() -> None:
    optimized = optimize(torchvision.models.mobilenet_v2(num_classes=7), 1, 3, 64, 64)
    assert ops(optimized.module)["conv2d"] == 52
    assert ops(optimized.module)["batch_norm"] == 0
    assert sum(count > 1 for count in groups(optimized.module)) == 17


@pytest.mark.parametrize("size", [64, 65])
def test_an_average_before_a_projection(size: int) -> None:
    optimized = optimize(timm.create_model("resnet50d", num_classes=7), 1, 3, size, size)
    assert ops(optimized.module)["conv2d"] == 55
    assert ops(optimized.module)["batch_norm"] == 0
