"""Epilogues: what becomes a FusedConv, what does not, and that the numbers stay."""

import re
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import passfx
from passfx.export.epilogue import FuseEpilogues, split_epilogues
from passfx.export.onnx import export_onnx
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from passfx.verify.error import relative_error
from tests.export.models import check, counts, exported, results
from tests.helpers import draws, randomize

TOLERANCE = 1e-5


class Block(nn.Module):
    """A residual block: activation(conv(x) + shortcut(x))."""

    def __init__(
        self,
        conv: nn.Module,
        shortcut: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        is_reversed: bool = False,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.shortcut = shortcut
        self.activation = activation
        self.is_reversed = is_reversed

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shortcut is not None:
            z = self.shortcut(x)
            y = z + y if self.is_reversed else y + z
        return self.activation(y)


def fused(model: nn.Module, *args: Tensor, **options: object) -> tuple[ir.Model, list[str]]:
    """A model with its epilogues fused, proven equal to the plain one; and the refusals."""
    plain, model_ir = (exported(model, *args, **options) for _ in range(2))
    _, refusals = FuseEpilogues().rewrite(model_ir)
    for result, expected in zip(results(model_ir, *args), results(plain, *args), strict=True):
        assert relative_error(result, expected) <= TOLERANCE
    return model_ir, [refusal.reason for refusal in refusals]


def conv(bias: bool = True, **options: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, bias=bias, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_convolution_and_activation(
    tmp_path: Path, activation: Callable[[Tensor], Tensor], bias: bool
) -> None:
    model, refusals = fused(Block(conv(bias), activation=activation), torch.randn(2, 4, 5, 6))
    assert counts(model) == {"FusedConv": 1} and not refusals
    assert model.opset_imports["com.microsoft"] == 1
    check(model, tmp_path)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_reversed", [True, False])
def test_convolution_shortcut_and_activation(tmp_path: Path, is_reversed: bool, bias: bool) -> None:
    block = Block(conv(bias), nn.Identity(), is_reversed=is_reversed)
    model, refusals = fused(block, torch.randn(2, 4, 5, 6))
    assert counts(model) == {"FusedConv": 1} and not refusals
    check(model, tmp_path)


@pytest.mark.parametrize("is_reversed", [True, False])
def test_of_two_convolutions_the_deeper_one_takes_the_other(is_reversed: bool) -> None:
    body = nn.Sequential(conv(), nn.ReLU(), conv())
    model, refusals = fused(
        Block(body, nn.Conv2d(4, 4, 1), is_reversed=is_reversed), torch.randn(1, 4, 5, 6)
    )
    assert counts(model) == {"FusedConv": 2, "Conv": 1} and not refusals
    last = list(model.graph)[-1]
    skip = last.inputs[3]
    assert skip is not None and skip.producer() is not None
    assert skip.producer().op_type == "Conv"
    assert skip.producer().inputs[1].shape == [4, 4, 1, 1]


def test_a_rewrite_says_where_and_what() -> None:
    model = exported(Block(nn.Sequential(conv(), nn.ReLU(), conv()), nn.Identity()), image())
    rewrites, _ = FuseEpilogues().rewrite(model)
    assert [(item.module, item.what) for item in rewrites] == [
        ("conv.0", "conv + relu → FusedConv"),
        ("conv.2", "conv + shortcut + relu → FusedConv"),
    ]
    assert [len(item.removed) for item in rewrites] == [2, 3]
    assert all(item.added and item.at for item in rewrites)


def test_names_of_results_stay() -> None:
    plain, model = (exported(Block(conv(), nn.Identity()), image()) for _ in range(2))
    FuseEpilogues().rewrite(model)
    (old,), (new,) = plain.graph.outputs, model.graph.outputs
    assert (old.name, old.shape, old.dtype) == (new.name, new.shape, new.dtype)


def image() -> Tensor:
    return torch.randn(1, 4, 5, 6)


def test_a_batch_that_varies() -> None:
    block, shapes = Block(conv(), nn.Identity()), {"x": {0: Dim("batch")}}
    model, refusals = fused(block, torch.randn(3, 4, 5, 6), dynamic_shapes=shapes)
    assert counts(model) == {"FusedConv": 1} and not refusals
    x = torch.randn(5, 4, 5, 6)
    assert relative_error(results(model, x)[0], block(x)) <= TOLERANCE


class Twice(nn.Module):
    """The result of the convolution is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return torch.relu(y), torch.sigmoid(y)


class SumAndRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x) + x
        return torch.relu(y), y


class Broadcast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


REFUSED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "float64": (Block(conv()).double(), torch.randn(1, 4, 5, 6).double(), "no kernel for DOUBLE"),
    "1-D": (Block(nn.Conv1d(4, 4, 3)), torch.randn(1, 4, 9), "in two dimensions"),
    "3-D": (Block(nn.Conv3d(4, 4, 3)), torch.randn(1, 4, 5, 5, 5), "in two dimensions"),
    "two readers": (Twice(), torch.randn(1, 4, 5, 6), "is read by something else too"),
    "an output": (SumAndRelu(), torch.randn(1, 4, 5, 6), "is read by something else too"),
    "broadcast": (
        Block(conv(), Broadcast()),
        torch.randn(1, 4, 5, 6),
        "the shortcut has not the known shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_stays(case: str) -> None:
    module, x, reason = REFUSED[case]
    model = exported(module, x)
    before = counts(model)
    rewrites, refusals = FuseEpilogues().rewrite(model)
    assert not rewrites and counts(model) == before
    assert [reason in refusal.reason for refusal in refusals] == [True]
    assert "com.microsoft" not in model.opset_imports


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        (ir.AttrInt64s("pads", [0, 0, 1, 1]), r"padding \(0, 0, 1, 1\) differs between two sides"),
        (ir.AttrString("auto_pad", "SAME_UPPER"), "padding depends on the size of the image"),
    ],
)
def test_uneven_padding_is_refused(attribute: ir.Attr, said: str) -> None:
    model = exported(Block(nn.Conv2d(4, 4, 2)), image())
    node = next(node for node in model.graph if node.op_type == "Conv")
    node.attributes[attribute.name] = attribute
    rewrites, refusals = FuseEpilogues().rewrite(model)
    assert not rewrites
    (refusal,) = refusals
    assert re.search(said, refusal.reason)


@pytest.mark.parametrize(
    "activation", [nn.Sigmoid(), nn.LeakyReLU(), nn.GELU(), nn.Hardswish(), nn.Identity()]
)
def test_another_activation_is_no_shape_of_ours(activation: nn.Module) -> None:
    model, refusals = fused(Block(conv(), activation=activation), image())
    assert "FusedConv" not in counts(model) and not refusals


@given(
    channels=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    bias=st.booleans(),
    skip=st.booleans(),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
@settings(max_examples=draws(4), deadline=None)
def test_numbers_stay(
    channels: int,
    groups: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    padding: int,
    bias: bool,
    skip: bool,
    size: tuple[int, int],
) -> None:
    width = channels * groups

    def layer() -> nn.Conv2d:
        return nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=groups, bias=bias)

    block = Block(layer(), layer() if skip else None)
    model, refusals = fused(block, torch.randn(2, width, *size))
    assert counts(model)["FusedConv"] == 1 and not refusals


def test_splitting_undoes_fusing(tmp_path: Path) -> None:
    body = nn.Sequential(conv(), nn.Tanh(), conv(bias=False))
    module, x = Block(body, nn.Identity()), image()
    plain = exported(module, x)
    model, _ = fused(module, x)
    assert [item.what for item in split_epilogues(model)] == [
        "FusedConv → Conv + Tanh",
        "FusedConv → Conv + Add + Relu",
    ]
    assert counts(model) == counts(plain)
    assert model.opset_imports == plain.opset_imports
    assert relative_error(results(model, x)[0], results(plain, x)[0]) == 0
    check(model, tmp_path)
    assert split_epilogues(model) == []


def test_a_second_run_finds_nothing() -> None:
    model, _ = fused(Block(conv(), nn.Identity()), image())
    assert FuseEpilogues().rewrite(model) == ([], [])


@pytest.mark.parametrize(
    ("name", "remaining"),
    [
        ("torchvision:resnet18", {"FusedConv": 17, "Conv": 3}),
        pytest.param("timm:repvgg_a0", {"FusedConv": 22}, marks=pytest.mark.slow),
    ],
)
def test_whole_models(name: str, remaining: dict[str, int]) -> None:
    pytest.importorskip(name.partition(":")[0])
    source = load_source(SourceSpec(name))
    assert isinstance(source.model, nn.Module)
    x = torch.randn(1, 3, 64, 64)
    optimized = passfx.optimize(randomize(source.model), (x,), target="cuda")
    plain, model = (export_onnx(optimized.module, optimized.captured) for _ in range(2))
    rewrites, refusals = FuseEpilogues().rewrite(model)
    assert len(rewrites) == remaining["FusedConv"] and not refusals
    found = counts(model)
    assert {kind: found[kind] for kind in ("FusedConv", "Conv") if found[kind]} == remaining
    assert not found["Relu"] and not found["Add"]
    assert relative_error(results(model, x)[0], results(plain, x)[0]) <= TOLERANCE
