"""Drawn networks are right with certificates and without, at other sizes, and as files."""

import warnings
from collections import Counter
from collections.abc import Iterable

import pytest
import torch

from tests.fuzz.check import Outcome, check
from tests.fuzz.drawing import draw_network
from tests.fuzz.minimise import minimise
from tests.fuzz.network import Input, Network, Part, Step
from tests.fuzz.networks import outcomes, smallest, table


def assert_right(seeds: Iterable[int], jobs: int = 1, *, onnx: bool = False) -> None:
    """Nothing failed; most are no refusals; the smallest network that failed is printed."""
    found = dict(zip(seeds := [*seeds], outcomes(seeds, jobs, onnx), strict=True))
    failed = {seed: outcome for seed, outcome in found.items() if outcome.failed}
    for seed, outcome in failed.items():
        print(f"# seed {seed}: {outcome.why}\n\n{smallest(seed, onnx)}")
        break
    kinds = Counter(outcome.kind for outcome in found.values())
    assert not failed, {seed: outcome.why for seed, outcome in failed.items()}
    assert kinds["fine"] >= (0.5 if onnx else 0.75) * len(found), table(found)


def test_100_networks() -> None:
    assert_right(range(100))


@pytest.mark.fuzz
def test_2000_networks() -> None:
    assert_right(range(1000, 3000), jobs=2)


@pytest.mark.fuzz
def test_200_networks_through_onnxruntime() -> None:
    assert_right(range(5000, 5200), jobs=2, onnx=True)


def test_a_seed_is_always_the_same_network() -> None:
    one, other = draw_network(11), draw_network(11)
    assert one == other
    assert one.source() == other.source()
    results = [item.module()(*item.example()) for item in (one, other)]
    first, second = map(torch.utils._pytree.tree_leaves, results)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_most_of_what_is_drawn_occurs() -> None:
    texts = "\n".join(draw_network(seed).source() for seed in range(400))
    for name in (
        "nn.Conv1d", "nn.Conv2d", "nn.Conv3d", "nn.ConvTranspose2d", "groups=", "dilation=",
        "'same'",
        "padding_mode=", "BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "avg_pool",
        "max_pool",
        "lp_pool", "adaptive_avg_pool", "ceil_mode", "count_include_pad", "divisor_override",
        "F.pad",
        "reflect", "replicate", "circular", "interpolate", "antialias", "align_corners",
        "torch.cat",
        "chunk", "relu_()", ".half()", "torch.where", "nn.Embedding",
        "scaled_dot_product_attention",
        "nn.MultiheadAttention", "dict(", "output_padding", "torch.rsub", "alpha=", "inplace=True",
    ):  # fmt: skip
        assert name in texts, name


def _judge(network: Network) -> Outcome:
    """A fault in what a network holds: a subtraction somewhere before its result."""
    text = network.source()
    return Outcome("mismatch" if "sigmoid" in text and "stride" in text else "fine")


def test_the_minimiser_leaves_only_what_fails() -> None:
    network = Network(
        (Input("float", (2, 3, 7, 7), (0,)), Input("float", (2, 3))),
        (Part("nn.Conv2d(3, 4, 3{settings})", (("stride", 2), ("bias", False))),),
        (
            Step("F.relu({0})", (0,)),
            Step("{part}({0})", (2,), part=0),
            Step("{0}.sigmoid()", (3,)),
            Step("{0} * 2", (4,)),
            Step("{0} + 1", (1,)),
        ),
        (5, 6),
        "tuple",
        0,
    )
    found = minimise(network, _judge)
    assert [step.text for step in found.steps] == ["{part}({0})", "{0}.sigmoid()"]
    assert found.parts[0].settings == (("stride", 2),)
    assert len(found.inputs) == len(found.results) == 1
    assert found.module()(*found.example()).shape == (2, 4, 3, 3)


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that is wrong on purpose fails the check where certificates are off, not on."""
    from passfx.passes.compose_clips import ComposeClips

    network = Network(
        (Input("float", (2, 3)),), (),
        (Step("{0} * 100.0", (0,)), Step("F.relu({0})", (1,)), Step("F.relu6({0})", (2,))),
        (3,), "single", 0,
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        assert check(network).kind == "fine"
        monkeypatch.setattr(ComposeClips, "rewrite", lambda self, editor, match: match.nodes[0])
        outcome = check(network)
    assert outcome.kind == "mismatch" and "without certificates" in outcome.why
