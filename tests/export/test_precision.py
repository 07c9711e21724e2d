"""Mixed precision: what is converted, what stays and why, and how far the numbers go."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import passfx
from passfx.errors import ExportError
from passfx.export.casts import FORMATS
from passfx.export.onnx import export_onnx
from passfx.export.precision import LowerPrecision
from passfx.export.rounding import emulated
from passfx.graph.evaluate import widen
from passfx.runtime.reference import run_model
from passfx.target import CPU
from passfx.verify.channels import channel_error
from passfx.verify.error import relative_error
from tests.export.models import check, counts, exported, results
from tests.helpers import randomize

HALF = ir.DataType.FLOAT16


def lowered(
    module: nn.Module, *args: Tensor, precision: str = "fp16", export: Any = None, **options: Any
) -> tuple[ir.Model, list[str]]:
    """A model in half precision, and why operators stay in float32."""
    model = exported(module, *args, **(export or {}))
    names = [str(item.name) for item in model.graph.inputs]
    samples = [dict(zip(names, (item.numpy() for item in args), strict=True))]
    _, refusals = LowerPrecision(precision, samples, run_model, **options).rewrite(model)
    return model, [refusal.reason for refusal in refusals]


def half_error(model: ir.Model, module: nn.Module, *args: Tensor) -> float:
    """The error against float64, with every result rounded to half precision."""
    dtypes = {item.name: item.dtype for item in model.graph.inputs}
    given = [
        item.half() if dtype == HALF else item
        for item, dtype in zip(args, dtypes.values(), strict=True)
    ]
    found = results(emulated(model), *given)[0]
    doubled = module.double()(*(item.double() for item in args))
    module.float()
    return relative_error(found, doubled)


def casts(model: ir.Model) -> int:
    return counts(model)["Cast"]


class Net(nn.Module):
    """Convolutions with norms, a shortcut, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(torch.relu(self.second(y) + y).mean(dim=(2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return randomize(Net())


IMAGE = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_a_network_is_cast_at_its_border_only(tmp_path: Path, net: nn.Module) -> None:
    model, reasons = lowered(net, IMAGE)
    assert not reasons and casts(model) == 2
    assert {item.dtype for item in (*model.graph.inputs, *model.graph.outputs)} == {
        ir.DataType.FLOAT
    }
    assert all(
        value.dtype == HALF
        for node in model.graph
        if node.op_type != "Cast"
        for value in node.outputs
    )
    floats = [
        item.dtype
        for item in model.graph.initializers.values()
        if item.dtype in (HALF, ir.DataType.FLOAT)
    ]
    assert set(floats) == {HALF}
    assert half_error(model, net, IMAGE) <= 1e-2
    check(model, tmp_path)


def test_half_inputs_and_outputs_need_no_cast(tmp_path: Path, net: nn.Module) -> None:
    model, _ = lowered(net, IMAGE, half_io=True)
    assert casts(model) == 0
    assert {item.dtype for item in (*model.graph.inputs, *model.graph.outputs)} == {HALF}
    assert half_error(model, net, IMAGE) <= 1e-2
    check(model, tmp_path)


def test_names_of_inputs_and_outputs_stay(net: nn.Module) -> None:
    plain, (model, _) = exported(net, IMAGE), lowered(net, IMAGE)
    for old, new in ((plain.graph.inputs, model.graph.inputs),
                     (plain.graph.outputs, model.graph.outputs)):  # fmt: skip
        assert [(item.name, item.shape) for item in old] == [
            (item.name, item.shape) for item in new
        ]


def test_a_rewrite_counts(net: nn.Module) -> None:
    model = exported(net, IMAGE)
    (rewrite,), _ = LowerPrecision("fp16", [{"x": IMAGE.numpy()}], run_model).rewrite(model)
    operators = sum(counts(model).values()) - 2
    assert rewrite.what == f"{operators} of {operators} operators in float16, 2 casts"


def test_a_second_run_changes_nothing(net: nn.Module) -> None:
    model, _ = lowered(net, IMAGE)
    before = str(model)
    samples = [{"x": IMAGE.numpy()}]
    assert LowerPrecision("fp16", samples, run_model).rewrite(model) == ([], [])
    assert str(model) == before


class Scaled(nn.Module):
    """A convolution whose result is scaled up, and down again."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.first.weight *= scale
            self.second.weight /= scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.first(x)))


def test_what_overflows_stays(tmp_path: Path) -> None:
    module = Scaled(1e5)
    model, reasons = lowered(module, IMAGE)
    assert any(("its result reaches" in reason and "65504" in reason) or "6.55e+04" in reason
               for reason in reasons)  # fmt: skip
    assert math.isfinite(half_error(model, module, IMAGE))
    assert half_error(model, module, IMAGE) <= 1e-2
    check(model, tmp_path)


def test_without_calibration_it_would_overflow() -> None:
    """The same model, calibrated on zeros, is infinite: the proof above can fail."""
    module = Scaled(1e5)
    model = exported(module, IMAGE)
    LowerPrecision("fp16", [{"x": np.zeros((2, 3, 9, 7), np.float32)}], run_model).rewrite(model)
    assert not half_error(model, module, IMAGE) <= 1e-2


def test_weights_that_vanish_stay() -> None:
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight *= 1e-8
        conv.bias *= 1e-8  # type: ignore[operator]
    module = nn.Sequential(nn.Sigmoid(), conv)
    model, reasons = lowered(module, IMAGE)
    assert ["by itself" in reason for reason in reasons] == [True]
    assert half_error(model, module, IMAGE) <= 1e-2
    with pytest.raises(ExportError, match=r"no operator .* in float16: Conv stays in float32"):
        lowered(conv, IMAGE)


class Residual(nn.Module):
    """Weights that vanish, in a branch whose result is added to something large."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.branch.weight *= 1e-8
            self.branch.bias *= 1e-8  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_what_is_lost_in_a_sum_need_not_be_exact() -> None:
    module = Residual()
    model, reasons = lowered(module, IMAGE)
    assert not reasons
    assert half_error(model, module, IMAGE) <= 1e-3


class Quiet(nn.Module):
    """A channel whose folded weights, 1e-4 · 1e-4, float16 does not hold, beside larger ones."""

    def __init__(self, layer: nn.Module, axis: int, gain: float = 1e-4) -> None:
        super().__init__()
        self.layer, self.axis, self.gain = layer, axis, gain
        with torch.no_grad():
            layer.weight.fill_(0.5)  # type: ignore[union-attr, operator]
            layer.weight.view(4, -1)[2] = 1e-4 * gain  # type: ignore[union-attr, operator, index]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sigmoid(x))


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Conv2d(3, 4, 1, bias=False), 1), (nn.Linear(7, 4, bias=False), 3)],
)
def test_a_channel_whose_weights_vanish_stays(layer: nn.Module, axis: int) -> None:
    model, reasons = lowered(Quiet(layer, axis), IMAGE)
    assert ["too small for float16: a channel loses 100%" in item for item in reasons] == [True]
    (found,) = results(emulated(model), IMAGE)
    doubled = Quiet(layer, axis).double()(IMAGE.double())
    layer.float()
    assert channel_error(widen(found), widen(doubled), 0.0) <= 1e-2
    assert not lowered(Quiet(layer, axis, gain=1.0), IMAGE)[1]


class Deviation(nn.Module):
    """x − mean(x) of numbers that lie close together."""

    def forward(self, x: Tensor) -> Tensor:
        far = torch.sigmoid(x) * 0.01 + 8.0
        return torch.tanh(far - far.mean(dim=1, keepdim=True))


def test_cancellation_stays_with_its_operands() -> None:
    module = Deviation()
    model, reasons = lowered(module, IMAGE)
    assert any("where its inputs are rounded" in reason for reason in reasons)
    assert any("loses too much where it is rounded" in reason for reason in reasons)
    assert half_error(model, module, IMAGE) <= 1e-2


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.interpolate(self.first(x), scale_factor=2.0, mode="bilinear")
        return self.second(y)


def test_resizing_stays(tmp_path: Path) -> None:
    model, reasons = lowered(Upsample(), IMAGE)
    assert len(reasons) == 1 and reasons[0].startswith("Resize stays in float32")
    assert casts(model) == 4
    check(model, tmp_path)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x).sum(dim=(2, 3)) * 1e-3


def test_large_reductions_stay() -> None:
    _, reasons = lowered(Sum(), torch.randn(1, 2, 70, 70))
    assert [reason for reason in reasons if "reduces 4900 elements" in reason]
    assert not lowered(Sum(), torch.randn(1, 2, 9, 9))[1]


class Shared(nn.Module):
    """One weight in a convolution that stays and in one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.conv(x * 1e6)


def test_a_shared_weight_exists_in_both_precisions(tmp_path: Path) -> None:
    model, reasons = lowered(Shared(), IMAGE)
    assert reasons
    weights = [item for item in model.graph.initializers.values() if item.shape == [3, 3, 1, 1]]
    assert {item.dtype for item in weights} == {HALF, ir.DataType.FLOAT}
    check(model, tmp_path)


def test_shapes_and_integers_are_not_touched(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            y = self.table(ids) * x
            return torch.where(ids.unsqueeze(-1) > 2, y, y.float().exp())

    module, ids, x = Positions(), torch.tensor([[0, 3, 6]]), torch.randn(1, 3, 4)
    model, reasons = lowered(module, ids, x)
    assert not reasons
    assert model.graph.inputs[0].dtype == ir.DataType.INT64
    (found,) = results(emulated(model), ids, x)
    assert 0 < relative_error(found, module(ids, x)) <= 1e-2
    check(model, tmp_path)


def test_a_batch_that_varies(net: nn.Module) -> None:
    shapes = {"x": {0: Dim("batch")}}
    model, reasons = lowered(net, IMAGE, export={"dynamic_shapes": shapes})
    assert not reasons and casts(model) == 2
    x = torch.randn(5, 3, 9, 7)
    assert half_error(model, net, x) <= 1e-2


class Attention(nn.Module):
    """A transformer block, whose products have no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v)
        return x + self.down(functional.gelu(self.up(self.last(x))))


TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-2), ("bf16", 8e-2)])
def test_attention(tmp_path: Path, precision: str, tolerance: float) -> None:
    module = Attention()
    model, reasons = lowered(module, TOKENS, precision=precision)
    assert not reasons and casts(model) == 2
    assert 0 < half_error(model, module, TOKENS) <= tolerance
    check(model, tmp_path)


def test_bf16_without_kernels_is_refused(net: nn.Module) -> None:
    with pytest.raises(ExportError, match=r"no bfloat16 kernel for Conv \(2 in this model\)"):
        lowered(net, IMAGE, precision="bf16")
    with pytest.raises(ExportError, match="CPU provider has no bfloat16 kernels"):
        lowered(Attention(), TOKENS, precision="bf16", target=CPU)


def test_bf16_keeps_what_has_no_kernel(tmp_path: Path) -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.block = nn.Conv2d(3, 16, 3, stride=3), Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.patch(x).flatten(2).transpose(1, 2))

    model, reasons = lowered(Patches(), torch.randn(1, 3, 9, 9), precision="bf16")
    assert reasons == ["Conv stays in float32: ONNX Runtime has no bfloat16 kernel for it"]
    check(model, tmp_path)


def test_a_stricter_accuracy_keeps_more(net: nn.Module) -> None:
    assert not lowered(net, IMAGE)[1]
    model, reasons = lowered(net, IMAGE, accuracy=4e-4)
    assert reasons and all("by itself" in reason for reason in reasons)
    assert half_error(model, net, IMAGE) <= 1e-2
    with pytest.raises(ExportError, match="by itself"):
        lowered(net, IMAGE, accuracy=1e-6)


def test_a_model_in_another_precision_is_refused() -> None:
    with pytest.raises(ExportError, match="can be in float16, it has none in float32"):
        lowered(Net().double(), IMAGE.double())


class Moves(nn.Module):
    """Data movement between two operators that stay."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        y = y.flip(0).transpose(2, 3)[:, :, 1:]
        return torch.sigmoid(functional.interpolate(y, scale_factor=0.5, mode="bilinear"))


def test_movement_between_float32_operators_stays() -> None:
    model, _ = lowered(Moves(), IMAGE)
    assert casts(model) == 2  # around the sigmoid
    kept = {node.op_type for node in model.graph if node.outputs[0].dtype == ir.DataType.FLOAT}
    assert kept >= {"Resize", "Transpose", "Slice"}


def pairs(model: ir.Model) -> list[str]:
    """Casts that undo a cast, and casts of one value to one type that exist twice."""
    found, seen = [], set()
    for node in model.graph:
        if node.op_type != "Cast":
            continue
        (read,), (result,) = node.inputs, node.outputs
        assert read is not None
        before = read.producer()
        if before is not None and before.op_type == "Cast" and before.inputs[0] is not None:
            found += [str(node.name)] if before.inputs[0].dtype == result.dtype else []
        key = read, result.dtype
        found += [str(node.name)] if key in seen or read.const_value is not None else []
        seen.add(key)
    return found


LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("efficientnet_b0", "mobileone_s1", "levit_128s")
]


@pytest.mark.parametrize("name", ["convnext_atto", *LARGE])
def test_whole_models(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    size = 224 if name == "levit_128s" else 64
    module, x = randomize(timm.create_model(name)).eval(), torch.randn(1, 3, size, size)
    optimized = passfx.optimize(module, (x,), verify=False)
    model = export_onnx(optimized.module, optimized.captured)
    samples = [{str(model.graph.inputs[0].name): x.numpy()}]
    LowerPrecision("fp16", samples, run_model).rewrite(model)
    assert not pairs(model)
    assert 0 < half_error(model, module, x) <= 1e-2
    check(model, tmp_path)


def test_emulation_rounds_every_result() -> None:
    """(x + 1) · 3 in float16, by numpy and emulated; in float32 it is another number."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("Mul", ["y", "three"], ["z"]),
    ]
    float16 = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", float16, [3])],
        [helper.make_tensor_value_info("z", float16, [3])],
        [helper.make_tensor("one", float16, [], [1.0]),
         helper.make_tensor("three", float16, [], [3.0])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x = torch.tensor([0.0004, 0.3333, 60000.0]).half()
    (found,) = results(emulated(ir.from_proto(proto)), x)
    with np.errstate(over="ignore"):
        expected = (x.numpy() + np.float16(1)) * np.float16(3)
    assert found.dtype == torch.float16
    assert np.array_equal(found.numpy(), expected)
    assert found[2] == math.inf
    exact = ((x.float() + 1) * 3).half()
    assert not torch.equal(found[:2], exact[:2])


def test_formats_round_as_torch_does() -> None:
    values = torch.randn(1000) * 10 ** torch.linspace(-9, 9, 1000)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        with np.errstate(over="ignore"):
            rounded = values.numpy().astype(FORMATS[name].dtype.numpy()).astype(np.float32)
        assert np.array_equal(rounded, values.to(dtype).float().numpy())


def test_every_sample_counts() -> None:
    module = Scaled(1e3)
    model = exported(module, IMAGE)
    samples: Sequence[dict[str, Any]] = [{"x": IMAGE.numpy()}, {"x": 1e4 * IMAGE.numpy()}]
    _, refusals = LowerPrecision("fp16", samples, run_model).rewrite(model)
    assert any("its result reaches" in refusal.reason for refusal in refusals)
