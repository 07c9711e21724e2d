"""Models that train with branches have the layers of the form that their authors deploy."""

import pytest

from tests.helpers import ops
from tests.zoo.proven import optimize
from tests.zoo.structure import assert_deployed_form

timm = pytest.importorskip("timm")

# The model, the size of its input, the exact counts and the greatest counts afterwards; test_zoo
# has repvgg_a0 and fastvit_t8.
MODELS: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "repghostnet_050": (64, {}, {"conv2d": 95}),
}
SLOW: dict[str, tuple[int, dict[str, int], dict[str, int]]] = {
    "mobileone_s0": (32, {"conv2d": 43, "add": 0}, {}),
    "repvgg_b1g4": (32, {"conv2d": 28, "add": 0}, {}),
    "repvit_m0_9": (64, {"conv2d": 103, "linear": 1}, {}),
    "ghostnetv3_100": (64, {}, {"conv2d": 137}),
    "efficientvit_m0": (224, {"add": 40}, {"conv2d": 116}),
    "levit_128s": (224, {"linear": 47, "conv2d": 4}, {}),
}


@pytest.mark.parametrize(
    "name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_model_has_the_layers_of_its_deployed_form(name: str) -> None:
    size, exact, most = {**MODELS, **SLOW}[name]
    optimized = optimize(timm.create_model(name, num_classes=7), 1, 3, size, size)
    assert_deployed_form(optimized)
    after = ops(optimized.module)
    assert {key: after[key] for key in exact} == exact
    assert all(after[key] <= count for key, count in most.items())
    if name == "ghostnetv3_100":  # its short_conv chain: biased, with zero borders
        reasons = [item.reason for run in optimized.report.passes for item in run.refusals]
        assert "the bias of the operator before would leak over its zero padding" in reasons


@pytest.mark.slow
def test_an_average_before_a_projection_of_an_odd_image() -> None:
    """The even size is that of test_zoo."""
    optimized = optimize(timm.create_model("resnet50d", num_classes=7), 1, 3, 65, 65)
    assert ops(optimized.module)["conv2d"] == 55
    assert ops(optimized.module)["batch_norm"] == 0
