"""Models that people use: each is optimised once, proven, and compared with its kept report."""

import pytest

from passfx.jobs.optimize import Optimized
from tests.golden import reports
from tests.models import ZOO
from tests.zoo.proven import assert_called_with_gradients
from tests.zoo.structure import assert_deployed_form, groups

pytest.importorskip("timm")
pytest.importorskip("torchvision")

# The counts that some operators must have before and after.
COUNTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "resnet18": (
        {"conv2d": 20, "batch_norm": 20, "add": 8},
        {"conv2d": 20, "batch_norm": 0, "add": 8, "relu": 17},
    ),
    "resnet50d": (
        {"conv2d": 55, "batch_norm": 55, "avg_pool2d": 3},
        {"conv2d": 55, "batch_norm": 0, "avg_pool2d": 3},
    ),
    "resnetv2_50x1_bit": (
        {"conv2d": 54, "batch_norm": 53},
        {"conv2d": 54, "batch_norm": 0, "reshape": 1},  # that of the head
    ),
    "nfnet_l0": ({"conv2d": 81, "batch_norm": 57}, {"conv2d": 81, "batch_norm": 0}),
    "repvgg_a0": (
        {"conv2d": 44, "batch_norm": 61},
        {"conv2d": 22, "batch_norm": 0, "add": 0},
    ),
    "convnext_atto": ({"batch_norm": 0}, {"dropout": 0}),
    "vit_tiny": (
        {"scaled_dot_product_attention": 12},
        {"scaled_dot_product_attention": 12, "dropout": 0, "clone": 0},
    ),
    "fastvit_t8": ({}, {"conv2d": 52, "mul": 1}),  # of squeeze and excite, not LayerScale
    "mobilenet_v2": (
        {"conv2d": 52, "batch_norm": 52, "hardtanh": 35},
        {"conv2d": 52, "batch_norm": 0, "dropout": 0},
    ),
    "frozen_resnet50": (
        {"conv2d": 53, "mul": 159, "rsqrt": 53},
        {"conv2d": 53, "mul": 0, "rsqrt": 0, "sub": 0, "add": 16},
    ),
}
SLOW = ("resnet50d", "resnetv2_50x1_bit", "nfnet_l0", "googlenet", "frozen_resnet50")
DEPLOYED_FORM = ("repvgg_a0", "fastvit_t8")  # models with branches, as test_deployed_forms has them


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ZOO]
)
def test_zoo(name: str) -> None:
    optimized = reports.optimize_zoo(name)
    assert_proven(optimized)
    before, after = COUNTS.get(name, ({}, {}))
    report = optimized.report
    assert {key: report.before.ops.get(key, 0) for key in before} == before
    assert {key: report.after.ops.get(key, 0) for key in after} == after
    if name in DEPLOYED_FORM:
        assert_deployed_form(optimized)
    if name == "mobilenet_v2":  # depthwise convolutions stay depthwise
        assert sum(count > 1 for count in groups(optimized.module)) == 17
    differences = reports.differences(f"zoo_{name}", reports.text(report.to_dict()))
    assert not differences, differences


def assert_proven(optimized: Optimized) -> None:
    """The whole agrees with the model, no rewrite was undone, and nothing grew."""
    report = optimized.report
    assert_called_with_gradients(optimized)
    assert report.parity is not None and report.parity.passed
    assert not optimized.captured.dead_code.rewrites
    assert report.after.nodes <= report.before.nodes
    # a move that is predicted to be faster, as of a head before its pool of 2x2, may take more MACs
    assert report.after.macs <= 1.001 * report.before.macs
    assert not any(run.rolled_back for run in report.passes)
    undone = [item for run in report.passes for item in run.refusals if "undone" in item.reason]
    assert not undone
