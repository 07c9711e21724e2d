"""models/digits.py: the trained network, its weights and its data."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models import digits
from tests.example_models.formulas import convolve, normalise, randn, randomise, relu

MODELS = Path(digits.__file__).parent


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
