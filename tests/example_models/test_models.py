"""The example networks compute what they say, and the shipped digits weights are good."""

import ast
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import digits, pass_layer, resnet, train_digits

MODELS = Path(digits.__file__).parent


def randomise(model: nn.Module) -> None:
    """Give every batch norm statistics and weights of its own: the fresh 0 and 1 hide errors."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Return float64 normal noise, the same at every call."""
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply the weights of `conv` with the geometry the tests expect, not with the module's."""
    assert isinstance(conv, nn.Conv2d)
    return functional.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Write eval-mode batch norm out, arXiv:1502.03167."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance, weight, bias = (
        values[:, None, None]
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(variance + norm.eps) * weight + bias


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# pass_layer.py


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 4), (4, 6), (6, 4)])
def test_residual_block_equals_its_formula(in_channels: int, out_channels: int) -> None:
    block = pass_layer.ResidualBlock(in_channels, out_channels).double().eval()
    randomise(block)
    x = randn(2, in_channels, 5, 7)

    body = relu(normalise(convolve(x, block.conv1), block.bn1))
    body = normalise(convolve(body, block.conv2), block.bn2)
    if in_channels == out_channels:
        skip = x
    else:
        conv, norm = block.pass_layer
        skip = normalise(convolve(x, conv), norm)

    torch.testing.assert_close(block(x.clone()), relu(body + skip))


def test_residual_block_has_a_pass_layer_only_where_the_channels_differ() -> None:
    assert len(pass_layer.ResidualBlock(4, 4).pass_layer) == 0
    conv, norm = pass_layer.ResidualBlock(4, 6).pass_layer
    assert isinstance(conv, nn.Conv2d)
    assert conv.kernel_size == (1, 1)
    assert isinstance(norm, nn.BatchNorm2d)


def test_residual_block_convolutions_have_a_bias() -> None:
    block = pass_layer.ResidualBlock(4, 4)
    assert block.conv1.bias is not None
    assert block.conv2.bias is not None


def test_residual_block_leaves_its_input_alone() -> None:
    x = randn(1, 4, 5, 5)
    before = x.clone()
    pass_layer.ResidualBlock(4, 4).double().eval()(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def with_other_conv1(model: pass_layer.PassCNN) -> pass_layer.PassCNN:
    other = copy.deepcopy(model)
    nn.init.constant_(other.conv1.weight, 0.25)
    return other


def test_pass_cnn_ignores_its_first_branch() -> None:
    model = pass_layer.PassCNN().double().eval()
    randomise(model)
    x = randn(2, 3, 5, 7)
    assert torch.equal(model(x), with_other_conv1(model)(x))
    conv, norm = model.pass_layer
    torch.testing.assert_close(model(x), normalise(convolve(x, conv), norm))


def test_pass_cnn_still_runs_its_first_branch() -> None:
    model = pass_layer.PassCNN().double().train()
    assert model.bn1.running_mean is not None
    before = model.bn1.running_mean.clone()
    model(randn(2, 3, 5, 7))
    assert not torch.equal(model.bn1.running_mean, before)


def test_pass_cnn_add_is_the_sum_of_both_branches() -> None:
    model = pass_layer.PassCNNAdd().double().eval()
    randomise(model)
    x = randn(2, 3, 5, 7)
    assert not torch.allclose(model(x), with_other_conv1(model)(x))
    conv, norm = model.pass_layer
    first = relu(normalise(convolve(x, model.conv1), model.bn1))
    torch.testing.assert_close(model(x), first + normalise(convolve(x, conv), norm))


def test_pass_variants_equal_their_formula() -> None:
    model = pass_layer.PassVariants(channels=5).double().eval()
    randomise(model)
    nn.init.constant_(model.scaled.skip.get_parameter("factor"), -0.7)
    x = randn(2, 5, 6, 7, scale=20.0)

    def body(x: Tensor, block: pass_layer.SkipBlock) -> Tensor:
        conv1, norm1, _, conv2, norm2 = block.body
        return normalise(convolve(relu(normalise(convolve(x, conv1), norm1)), conv2), norm2)

    out = relu(body(x, model.scaled) + -0.7 * x)
    assert (out > 6).any(), "nothing to clamp: the clamped block would not be tested"
    out = relu(body(out, model.clamped) + torch.where(out > 6, 6.0, relu(out)))
    out = relu(body(out, model.normalised) + normalise(out, model.normalised.skip))
    out = relu(body(out, model.passed) + out)

    torch.testing.assert_close(model(x), out)


def test_clamp_has_both_bounds() -> None:
    # Inside PassVariants a ReLU stands before the clamp, so that only the upper bound acts there.
    clamped = pass_layer.Clamp()(torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0]))
    assert clamped.tolist() == [0, 0, 3, 6, 6]


def test_pass_variants_scale_by_half_at_first_with_eight_channels() -> None:
    model = pass_layer.PassVariants()
    assert model.scaled.skip.get_parameter("factor").item() == 0.5
    assert model(torch.zeros(1, 8, 4, 4)).shape == (1, 8, 4, 4)


# resnet.py


@pytest.mark.parametrize(
    ("build", "variant", "count"),
    [
        # He et al. report no counts; these are torchvision's and timm's.
        (resnet.resnet18, "v1", 11_689_512),
        (resnet.resnet18, "v1.5", 11_689_512),
        (resnet.resnet18, "d", 11_708_744),
        (resnet.resnet50, "v1", 25_557_032),
        (resnet.resnet50, "v1.5", 25_557_032),
        (resnet.resnet50, "d", 25_576_264),
    ],
)
def test_resnet_has_the_published_number_of_parameters(
    build: Callable[..., resnet.ResNet], variant: str, count: int
) -> None:
    assert parameter_count(build(variant)) == count


@pytest.mark.parametrize("variant", resnet.VARIANTS)
@pytest.mark.parametrize("build", [resnet.resnet18, resnet.resnet50])
def test_resnet_returns_one_logit_per_class(
    build: Callable[..., resnet.ResNet], variant: str
) -> None:
    model = build(variant, num_classes=7).eval()
    images = torch.zeros(2, 3, 97, 75)  # 1 more and 11 more than a multiple of 32
    assert model.stages(model.stem(images)).shape[2:] == (4, 3)
    assert model(images).shape == (2, 7)


def test_resnet_takes_its_example_inputs() -> None:
    inputs = resnet.example_inputs()
    assert inputs[0].shape == (1, 3, 224, 224)
    assert torch.equal(inputs[0], resnet.example_inputs()[0])
    model = resnet.resnet18().eval()
    stages = model.stages
    x = model.stem(*inputs)
    shapes = [tuple((x := stage(x)).shape[1:]) for stage in stages]
    assert shapes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def body_strides(model: resnet.ResNet, stage: int) -> list[int]:
    """Return the strides of the convolutions in the body of a stage's first block."""
    body = model.stages.get_submodule(f"{stage}.0.body")
    return [conv.stride[0] for conv in body.modules() if isinstance(conv, nn.Conv2d)]


@pytest.mark.parametrize(
    ("variant", "strides"),
    [("v1", [2, 1, 1]), ("v1.5", [1, 2, 1]), ("d", [1, 2, 1]), ("preact", [1, 2, 1])],
)
def test_bottleneck_strides_where_its_variant_says(variant: str, strides: list[int]) -> None:
    model = resnet.resnet50(variant)
    assert body_strides(model, stage=0) == [1, 1, 1]
    assert [body_strides(model, stage) for stage in (1, 2, 3)] == [strides] * 3


@pytest.mark.parametrize("variant", resnet.VARIANTS)
def test_basic_block_strides_in_its_first_convolution(variant: str) -> None:
    model = resnet.resnet18(variant)
    assert [body_strides(model, stage) for stage in (0, 1, 2, 3)] == [[1, 1], *[[2, 1]] * 3]


def test_variant_d_averages_where_it_strides() -> None:
    model = resnet.resnet50("d")
    pools = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.AvgPool2d)
    }
    assert list(pools) == [f"stages.{stage}.0.projection.0" for stage in (1, 2, 3)]
    for pool in pools.values():
        assert (pool.kernel_size, pool.stride) == (2, 2)
        assert pool.ceil_mode
        assert not pool.count_include_pad
    stem = [conv for conv in model.stem if isinstance(conv, nn.Conv2d)]
    assert [(conv.kernel_size, conv.stride[0], conv.out_channels) for conv in stem] == [
        ((3, 3), 2, 32),
        ((3, 3), 1, 32),
        ((3, 3), 1, 64),
    ]


@pytest.mark.parametrize("projected", [False, True])
def test_preactivation_block_equals_its_formula(projected: bool) -> None:
    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    projection = nn.Conv2d(4, 4, 1, bias=False) if projected else None
    block = resnet.PreactivationBlock([conv1, conv2], projection).double().eval()
    randomise(block)
    x = randn(2, 4, 5, 7)

    preactivated = relu(normalise(x, block.preactivation[0]))
    body = relu(normalise(convolve(preactivated, conv1), block.body[1]))
    body = convolve(body, conv2)
    skip = x if projection is None else convolve(preactivated, projection)

    torch.testing.assert_close(block(x), body + skip)


def test_preact_resnet_has_no_batch_norm_in_stem_and_projections() -> None:
    model = resnet.resnet50("preact")
    assert [type(layer) for layer in model.stem] == [nn.Conv2d, nn.MaxPool2d]
    for stage in range(4):
        projection = model.stages.get_submodule(f"{stage}.0.projection")
        assert [type(layer) for layer in projection.children()] == [nn.Conv2d]


def test_preact_resnet_ends_in_batch_norm_and_relu() -> None:
    norm, activation = resnet.resnet50("preact").final
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 2048
    assert isinstance(activation, nn.ReLU)


@pytest.mark.parametrize("projected", [False, True])
def test_postactivation_block_equals_its_formula(projected: bool) -> None:
    conv1, conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    projection = nn.Conv2d(4, 4, 1, bias=False) if projected else None
    block = resnet.PostactivationBlock([conv1, conv2], projection).double().eval()
    randomise(block)
    x = randn(2, 4, 5, 7)

    body = relu(normalise(convolve(x, conv1), block.body[1]))
    body = normalise(convolve(body, conv2), block.body[4])
    skip = x if projection is None else convolve(x, projection)

    torch.testing.assert_close(block(x), relu(body + skip))


@pytest.mark.parametrize("build", [resnet.resnet18, resnet.resnet50])
def test_unknown_variant_is_refused_with_the_known_ones(
    build: Callable[..., resnet.ResNet],
) -> None:
    message = "There is no ResNet variant 'v2'; choose one of 'v1', 'v1.5', 'd', 'preact'."
    with pytest.raises(ValueError, match=f"^{message}$"):
        build("v2")


# digits.py and train_digits.py


def test_digits_weights_are_small() -> None:
    assert digits.WEIGHTS == MODELS / "digits.safetensors"
    assert digits.WEIGHTS.stat().st_size < 2**20


def test_digits_resnet_is_right_on_the_held_out_digits() -> None:
    split = digits.load_split()
    trained = digits.accuracy(digits.digits_resnet(), split.test_images, split.test_labels)
    untrained = digits.digits_resnet(pretrained=False)
    assert trained >= 0.97
    assert digits.accuracy(untrained, split.test_images, split.test_labels) < 0.5


def test_digits_split_is_disjoint_stratified_and_scaled() -> None:
    split = digits.load_split()
    assert split.train_images.shape == (1347, 1, 8, 8)
    assert split.test_images.shape == (450, 1, 8, 8)
    images = torch.cat([split.train_images, split.test_images])
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert len({image.numpy().tobytes() for image in images}) == 1797
    assert split.test_labels.dtype == torch.int64
    counts = split.test_labels.bincount()
    assert len(counts) == 10
    assert (counts.min().item(), counts.max().item()) == (43, 46)
    assert torch.equal(split.test_images, digits.load_split().test_images)


def test_digits_batch_norm_statistics_are_trained() -> None:
    norms = [
        module for module in digits.digits_resnet().modules() if isinstance(module, nn.BatchNorm2d)
    ]
    assert len(norms) == 20
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert (norm.running_mean != 0).all()
        assert (norm.running_var != 1).all()
        assert (norm.running_var > 0).all()


def test_digits_example_is_a_digit() -> None:
    (image,) = digits.example_inputs()
    assert image.shape == (1, 1, 8, 8)
    assert image.dtype == torch.float32
    assert (image.min().item(), image.max().item()) == (0, 1)
    assert digits.digits_resnet()(image).softmax(dim=1)[0, 3] > 0.5


def test_repvgg_block_equals_its_formula() -> None:
    block = digits.RepVGGBlock(4).double().eval()
    randomise(block)
    x = randn(2, 4, 5, 7)
    wide, pointwise = (
        normalise(convolve(x, branch[0]), branch[1]) for branch in (block.conv3x3, block.conv1x1)
    )
    expected = relu(wide + pointwise + normalise(x, block.identity))
    torch.testing.assert_close(block(x), expected)


def test_digits_resnet_has_every_kind_of_block() -> None:
    blocks = digits.digits_resnet().blocks
    skips = [type(block.skip) for block in blocks if isinstance(block, digits.ResidualBlock)]
    assert nn.Identity in skips
    assert nn.Sequential in skips
    assert any(isinstance(block, digits.RepVGGBlock) for block in blocks)


def test_accuracy_counts_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    labels = torch.tensor([1, 0, 0, 0])
    assert digits.accuracy(lambda images: logits, torch.zeros(4, 1, 8, 8), labels) == 0.75


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digits, "WEIGHTS", tmp_path / "digits.safetensors")
    with pytest.raises(FileNotFoundError, match="train_digits.py"):
        digits.digits_resnet()
    digits.digits_resnet(pretrained=False)


@pytest.mark.parametrize("name", ["digits", "pass_layer", "resnet"])
def test_file_loads_by_its_path_alone(name: str, tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('loaded_by_path', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "if hasattr(module, 'digits_resnet'):\n"
        "    module.digits_resnet()(*module.example_inputs())\n"
        "assert not {'models', 'passfx', 'sklearn'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-I", "-c", script, str(MODELS / f"{name}.py")]
    subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.parametrize("arguments", [["models/train_digits.py"], ["-m", "models.train_digits"]])
def test_training_script_starts_in_both_ways(arguments: list[str], tmp_path: Path) -> None:
    """Run the script on a copy with one epoch, so that the shipped weights stay as they are."""
    copied = tmp_path / "models"
    copied.mkdir()
    for name in ("__init__.py", "digits.py", "train_digits.py"):
        text = (MODELS / name).read_text()
        copied.joinpath(name).write_text(
            text.replace(f"EPOCHS = {train_digits.EPOCHS}", "EPOCHS = 1")
        )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(copied / "digits.safetensors") in result.stdout
    assert "held-out accuracy" in result.stdout
    assert sorted(path.suffix for path in copied.glob("digits.*")) == [".py", ".safetensors"]


def test_interrupted_save_keeps_the_old_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(partial: Path, data: bytes) -> int:
        with partial.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        train_digits.save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes() == b"old"


def test_shifts_move_each_image_by_at_most_one_pixel() -> None:
    images = torch.zeros(400, 1, 5, 6)
    images[:, :, 2, 3] = 1
    torch.manual_seed(0)
    shifted = train_digits.shift_randomly(images)
    assert shifted.shape == images.shape
    assert torch.equal(shifted.sum(dim=(1, 2, 3)), torch.ones(400))
    places = {(row, column) for _, _, row, column in shifted.nonzero().tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}


# every file


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda path: path.name)
def test_models_do_not_import_passfx(path: Path) -> None:
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module or "")
    assert not [name for name in imported if name.split(".")[0] == "passfx"]
