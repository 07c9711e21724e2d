"""Shape arithmetic in the file: what a size that varies must not cost."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from passfx.capture.program import capture
from passfx.export.onnx import export_onnx, staged
from passfx.runtime.reference import open_session
from passfx.verify.error import relative_error

BATCH = {0: Dim.DYNAMIC}
IMAGE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


class Function(nn.Module):
    def __init__(self, body: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def written(folder: Path, model: nn.Module, x: Tensor, axes: Any, *others: Tensor) -> Counter[str]:
    """The operators of a file that is right for `x` and others."""
    model.eval()
    shapes = None if axes is None else {_parameter(model): axes}
    found = capture(model, (x,), dynamic_shapes=shapes)
    path = folder / "model.onnx"
    with staged(export_onnx(found.graph_module, found), path):
        pass
    session = open_session(path)
    for given in (x, *others):
        with torch.no_grad():
            expected = model(given)
        wanted = [expected] if isinstance(expected, Tensor) else [*flat(expected)]
        for result, reference in zip(session.run([given]), wanted, strict=True):
            assert result.shape == reference.shape
            assert relative_error(result, reference) <= 2e-6
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def flat(results: Any) -> Any:
    for item in results:
        yield from [item] if isinstance(item, Tensor) else flat(item)


def _parameter(model: nn.Module) -> str:
    return "input" if isinstance(model, nn.RNNBase) else "src" if is_encoder(model) else "x"


def is_encoder(model: nn.Module) -> bool:
    return isinstance(model, nn.TransformerEncoder)


def batches(*shape: int) -> list[Tensor]:
    return [torch.randn(batch, *shape) for batch in (1, 3, 5)]


def tokens(x: Tensor) -> Tensor:
    """Attention heads of an image, and back."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, 2, channels // 2, height * width).transpose(2, 3)
    return x.transpose(2, 3).reshape(batch, channels, height, width)


def heads(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = x.reshape(x.shape[0], 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def masked(m: nn.Module, x: Tensor) -> Tensor:
    """Attention under a causal mask that is expanded to the batch, as transformers does."""
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(x.shape[0], 1, 6, 6)
    q = x.unflatten(2, (2, 4)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)


def windows(m: nn.Module, x: Tensor) -> Tensor:
    """Attention in five axes, as hiera has it."""
    q, k, v = x.reshape(x.shape[0], 3, 2, 3, 2, 4).permute(3, 0, 4, 1, 2, 5).unbind(0)
    return F.scaled_dot_product_attention(q, k, v)


def assign(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = x[:, :2]
    return y


ENCODER = nn.TransformerEncoder(
    nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
)
MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "gru": (nn.GRU(5, 4, 2, batch_first=True), (6, 5)),
    "lstm": (nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True), (6, 5)),
    "encoder": (ENCODER, (6, 8)),
    "heads": (Function(heads), (6, 24)),
    "tokens": (Function(lambda m, x: tokens(x)), (8, 3, 4)),
    "resized": (
        Function(lambda m, x: F.interpolate(x, (6, 9), mode="bilinear") + F.interpolate(x, (6, 9))),
        (2, 3, 6),
    ),
    "channels last": (
        Function(lambda m, x: F.adaptive_avg_pool2d(x.softmax(3).permute(0, 3, 1, 2), 1) * 2),
        (3, 4, 6),
    ),
    "three axes": (Function(lambda m, x: F.scaled_dot_product_attention(x, x + 1, x)), (6, 8)),
    "five axes": (Function(windows), (6, 24)),
    "masked": (Function(masked), (6, 8)),
    "table": (Function(lambda m, x: x * torch.arange(3.0).expand(x.shape[0], 4, 3)), (4, 3)),
    "repeated": (Function(lambda m, x: x.expand(x.shape[0], 4, 3) * 2), (1, 3)),
    "window": (
        Function(lambda m, x: x.view(-1, 2, 2, 2, 3).transpose(2, 3).reshape(-1, 4, 3).softmax(-1)),
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_that_varies_costs_nothing(tmp_path: Path, name: str) -> None:
    model, shape = MODELS[name]
    x = torch.randn(2, *shape)
    fixed = written(tmp_path, model, x, None)
    varying = written(tmp_path, model, x, BATCH, *batches(*shape))
    assert varying <= fixed


def test_an_initial_state_of_zeros_is_left_out(tmp_path: Path) -> None:
    found = written(tmp_path, nn.GRU(5, 4, batch_first=True), torch.randn(2, 6, 5), BATCH)
    assert not {"Shape", "Expand", "Slice", "Concat"} & {*found}


def test_a_given_initial_state_stays(tmp_path: Path) -> None:
    gru = nn.GRU(5, 4)
    model = Function(lambda m, x: m.gru(x[:, :, :5], x[:1, :, 1:]), gru=gru)
    x = torch.randn(3, 2, 5)
    assert written(tmp_path, model, x, {1: Dim.DYNAMIC}, torch.randn(3, 4, 5))["GRU"] == 1
    inputs = next(n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "GRU")
    assert inputs.input[5]


def test_keys_are_transposed_in_one_step(tmp_path: Path) -> None:
    for axes in (None, BATCH):
        found = written(tmp_path, Function(heads), torch.randn(2, 6, 24), axes)
        assert (found["Reshape"], found["Transpose"]) == (2, 3)


def test_an_image_of_any_size_is_reshaped_with_0_and_minus_1(tmp_path: Path) -> None:
    x, other = torch.randn(2, 8, 3, 4), torch.randn(3, 8, 5, 2)
    model = Function(lambda m, x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 2, 4) * 2)
    found = written(tmp_path, model, x, IMAGE, other)
    assert not {"Shape", "Concat", "Gather"} & {*found}


def test_two_sizes_at_new_places_are_computed(tmp_path: Path) -> None:
    x, other = torch.randn(2, 8, 3, 4), torch.randn(3, 8, 5, 2)
    found = written(tmp_path, Function(lambda m, x: tokens(x)), x, IMAGE, other)
    assert found["Concat"] == 1


def test_an_image_whose_channels_lie_last_is_averaged(tmp_path: Path) -> None:
    model, shape = MODELS["channels last"]
    found = written(tmp_path, model, torch.randn(2, *shape), None)
    assert found == {"Softmax": 1, "Transpose": 1, "ReduceMean": 1, "Mul": 1}


def test_the_places_of_an_assignment_are_numbers(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3)
    found = written(tmp_path, Function(assign), x, BATCH, *batches(4, 3))
    assert not {"Shape", "Range", "Gather"} & {*found}


def test_what_is_empty_keeps_its_shape(tmp_path: Path) -> None:
    model = Function(lambda m, x: x.reshape(x.shape[0], 0, 3) * 2)
    written(tmp_path, model, torch.zeros(2, 0, 3), BATCH, torch.zeros(4, 0, 3))


def test_numbers_that_are_no_sizes_stay(tmp_path: Path) -> None:
    """An integer vector that is an input is data, whatever is done to it."""
    model = Function(lambda m, x: torch.cat([x[1:], x[:1]]) * 2)
    x = torch.tensor([3, 5, 7])
    written(tmp_path, model, x, None, torch.tensor([1, 1, 2]))
