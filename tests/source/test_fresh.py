"""Without weights no branch of a zoo's model is dead, and activations neither grow nor fade."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passfx.source.fresh import randomize
from passfx.source.load import load_source
from passfx.source.spec import Source, SourceSpec

pytest.importorskip("timm")
pytest.importorskip("torchvision")


class Layers(nn.Module):
    """What starts alike everywhere, and what does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.BatchNorm2d(8)
        nn.init.zeros_(self.last.weight)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-5))
        self.gain = nn.Parameter(torch.zeros(()))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.position = nn.Parameter(torch.zeros(1, 4, 4))
        self.head = nn.Linear(8, 5)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, -4.0)
        self.table = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x * 100 + 300)).relu()
        x = self.table.reshape(-1, 1, 1) * x + self.gain * self.scale * self.last(x)
        out: Tensor = self.head((x + self.position).mean((2, 3)) / self.temperature)
        return out


@pytest.fixture
def layers() -> Layers:
    torch.manual_seed(0)
    return Layers()


X = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_whatever_is_alike_everywhere_is_drawn(layers: Layers) -> None:
    before = {name: item.clone() for name, item in layers.state_dict().items()}
    randomize(layers.train(), (X,), {})
    after = layers.state_dict()
    kept = {name for name, item in before.items() if torch.equal(item, after[name])}
    assert kept == {
        *("conv.weight", "conv.bias", "temperature", "table"),
        *("norm.num_batches_tracked", "last.num_batches_tracked"),
    }
    assert layers.training
    for name, low, high in (
        *(("norm.weight", 0.5, 1.5), ("last.weight", 0.1, 0.3), ("scale", 0.1, 0.3)),
        *(("gain", 0.1, 0.3), ("head.bias", -4.5, -3.5), ("position", -0.5, 0.5)),
    ):
        assert low <= float(after[name].min()) <= float(after[name].max()) <= high, name
    assert 0.1 < float(after["head.weight"].std()) < 1


def test_statistics_are_those_of_what_a_norm_gets(layers: Layers) -> None:
    randomize(layers, (X,), {})
    seen: dict[str, Tensor] = {}
    for name in ("norm", "last"):
        module = layers.get_submodule(name)
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        layers.eval()(X)
    for name, out in seen.items():
        own = layers.get_submodule(name).requires_grad_(False)
        normal: Any = (out - own.bias.reshape(-1, 1, 1)) / own.weight.reshape(-1, 1, 1)
        assert float(normal.mean((0, 2, 3)).abs().max()) < 1
        assert 0.2 < float(normal.std((0, 2, 3)).median()) < 2


def test_a_seed_decides(layers: Layers) -> None:
    models = [copy.deepcopy(layers) for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        torch.manual_seed(seed + 10 * len(models))
        randomize(model, (X,), {}, seed)
    first, second, third = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["norm.running_mean"], third["norm.running_mean"])


def test_inputs_that_the_model_does_not_take_are_left_to_capture(layers: Layers) -> None:
    randomize(layers, (X[0, 0],), {})
    assert 0.5 <= float(layers.norm.running_var.min()) <= float(layers.norm.running_var.max()) <= 2


def test_a_constant_input_of_a_norm() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    randomize(model, (torch.full((1, 3, 2, 2), -100.0),), {})
    norm = model[1]
    assert torch.isfinite(norm.running_mean).all()
    assert float(norm.running_var.min()) > 0


def test_frozen_norms_have_their_weights_as_buffers() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(FrozenBatchNorm2d(3))
    randomize(model, (X,), {})
    assert all(len(item.unique()) == 3 for item in model.buffers())


# --------------------------------------------------------------------------------------- from a zoo


def peak_and_change(source: Source) -> tuple[float, float]:
    """The largest activation, and how far the result moves from one image to another."""
    peak = 0.0

    def see(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal peak
        peak = max([peak, *(float(x.abs().max()) for x in [out] if isinstance(x, Tensor))])

    model = source.model
    assert isinstance(model, nn.Module)
    for module in model.eval().modules():
        module.register_forward_hook(see)
    (x,) = source.args
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        first, second = model(x), model(other)
    return peak, float((first - second).abs().max() / first.abs().max())


# Their own start: 1e12 at inception_v3, 1e8 at mobileone; repvgg, vit_b_16 and googlenet answer
# every image alike.
NAMES = (
    *("timm:resnet18", "timm:mobileone_s1", "timm:repvgg_a0", "timm:efficientnet_b0"),
    *("timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:nfnet_l0", "timm:cait_xxs24_224"),
    *("torchvision:vit_b_16", "torchvision:inception_v3", "torchvision:googlenet"),
)


@pytest.mark.parametrize("name", NAMES)
def test_no_branch_is_dead_and_nothing_grows_or_fades(name: str) -> None:
    source = load_source(SourceSpec(name))
    peak, change = peak_and_change(source)
    assert peak < 1000
    assert 0.01 < change < 10
    for path, item in source.model.named_parameters():
        if item.numel() > 1:
            assert float(item.detach().std()) > 0, path


def test_it_is_said_and_can_be_left_out() -> None:
    (note,) = load_source(SourceSpec("timm:resnet10t")).notes
    assert note.startswith("no weights were given: norms, biases and layer scales are random (se")
    own = load_source(SourceSpec("timm:resnet10t", weights="none"))
    assert not own.notes
    assert not own.model.layer1[0].bn2.weight.any()


def test_trained_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: create(name))
    source = load_source(SourceSpec("timm:resnet10t", arguments={"pretrained": True}))
    assert not source.notes
    assert not source.model.layer1[0].bn2.weight.any()


def test_input_shapes_change_no_weight() -> None:
    sources = [
        load_source(SourceSpec("timm:resnet10t", input_shapes=shapes))
        for shapes in ((), ("1x3x64x64",))
    ]
    first, second = (source.model.state_dict() for source in sources)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_without_a_declared_size_runs_on_what_is_given() -> None:
    spec = SourceSpec("torchvision:lraspp_mobilenet_v3_large", input_shapes=["1x3x64x64"])
    source = load_source(spec)
    assert source.notes
    norms = [m for m in source.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(float(norm.running_var.max()) > 2 for norm in norms)
