"""`Optimized.export`: what is written, what is refused, and that nothing is left behind."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passfx
from passfx.algebra.channel import ChannelAffine
from passfx.algebra.conv import Conv
from passfx.errors import ExportError, RuntimeUnavailableError, VerificationError
from passfx.graph.editor import Certificate
from passfx.graph.query import is_call
from passfx.jobs.optimize import Optimized
from tests.helpers import randomize
from tests.jobs.blocks import Block, Nested, make_block, nested_inputs, spoil_norms

aten = torch.ops.aten


def test_wrong_result_is_an_error(
    block: Block, image: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil_norms(monkeypatch)
    wrong = passfx.optimize(block, (image,), verify=False)
    assert not any(is_call(node, aten.batch_norm) for node in wrong.module.graph.nodes)
    with pytest.raises(
        VerificationError, match="under CPUExecutionProvider the relative error of "
    ):
        wrong.export(tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())
    assert wrong.export(tmp_path / "wrong.onnx", verify=False).parity is None


class Gated(nn.Module):
    """Attention whose heads are half closed; ONNX Runtime's sigmoid is not exact far out."""

    def __init__(self, closed: float = 4.0) -> None:
        super().__init__()
        self.closed = closed
        self.norm, self.qkv, self.gate = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        found = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return found * torch.sigmoid(self.gate(x) - self.closed)


@pytest.fixture(scope="module")
def gated() -> Optimized:
    torch.manual_seed(0)
    return passfx.optimize(Gated().eval(), (torch.randn(1, 5, 8),))


def test_what_the_runtime_itself_approximates_is_no_fault(tmp_path: Path, gated: Optimized) -> None:
    proof = gated.export(tmp_path / "a.onnx").parity
    assert proof is not None and proof.baseline == "the model exported without rewrites"
    assert proof.passed and proof.rel_error > 1.4e-6
    again = gated.verify(tmp_path / "a.onnx").parity
    assert again == proof


class Pooled(nn.Module):
    """torch's exporter leaves the divisor out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 1, divisor_override=5)


class Resized(nn.Module):
    """ONNX Runtime antialiases aligned corners in another way."""

    def forward(self, x: Tensor) -> Tensor:
        size = (4, 8)
        return F.interpolate(x, size, mode="bilinear", align_corners=True, antialias=True)


@pytest.mark.parametrize("model", [Pooled(), Resized(), Gated(closed=16)])
def test_what_exporter_or_runtime_compute_wrongly_is_no_rounding(
    model: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given = torch.randn(1, 5, 8) if isinstance(model, Gated) else torch.randn(2, 3, 9, 7)
    message = (
        r"tolerated is \d\.\d+e-0[456] \(the model exported without rewrites itself has \S+: "
        "torch's exporter or the runtime computes another function"
    )
    with pytest.raises(VerificationError, match=message):
        passfx.optimize(model.eval(), (given,)).export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def negated(path: Path) -> Path:
    """A copy of a file with the sign of each of its matrices flipped."""
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if len(weight.dims) == 2:
            values = -onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path.with_name("negated.onnx"))
    return path.with_name("negated.onnx")


def test_what_the_runtime_does_not_excuse_is_told_with_both_errors(
    tmp_path: Path, gated: Optimized
) -> None:
    gated.export(tmp_path / "a.onnx")
    figure = r"\d\.\d\de[+-]\d\d"
    message = (
        rf"under CPUExecutionProvider the relative error of output is {figure}, tolerated is "
        rf"{figure} \(the model exported without rewrites itself has {figure}\); a larger --rtol"
    )
    with pytest.raises(VerificationError, match=message):
        gated.verify(negated(tmp_path / "a.onnx"))


class Gains(nn.Module):
    """A convolution and a norm that makes one channel 10 million times smaller than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        randomize(self)
        with torch.no_grad():
            self.norm.weight[4], self.norm.bias[4] = 1e-7, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def test_a_flipped_sign_in_a_small_channel_of_a_file_is_an_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimized = passfx.optimize(Gains().eval(), (torch.randn(1, 3, 9, 9),))
    optimized.export(tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight).copy()
        assert len(values) == 6
        values[4] *= -1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "flipped.onnx")
    with pytest.raises(VerificationError, match=r"of channel 4 of axis 1 of output is 2\.00e\+00"):
        optimized.verify(tmp_path / "flipped.onnx")


def test_a_flipped_sign_in_a_small_channel_of_a_graph_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fold that flips it, and a certificate that lets it pass."""
    scaled, signs = Conv.scaled, torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 1.0]).double()

    def flipped(self: Conv, after: ChannelAffine) -> Conv:
        return scaled(self, ChannelAffine(after.scale * signs, after.shift * signs))

    monkeypatch.setattr(Conv, "scaled", flipped)
    monkeypatch.setattr("passfx.pipeline.certify", lambda _: Certificate(None))
    torch.manual_seed(0)
    with pytest.raises(
        VerificationError, match=r"under torch .* channel 4 of axis 1 of output is 2"
    ):
        passfx.optimize(Gains().eval(), (torch.randn(1, 3, 9, 9),))


def test_results_that_are_not_finite(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    optimized = passfx.optimize(Root(), (torch.randn(2, 8),), allow_nonfinite=True)
    with pytest.raises(VerificationError, match="output holds . NaN; give other inputs, mend the"):
        optimized.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    proof = optimized.export(tmp_path / "a.onnx", allow_nonfinite=True).parity
    assert proof is not None and proof.nonfinite > 0
    assert optimized.verify(tmp_path / "a.onnx", allow_nonfinite=True).parity == proof


@pytest.mark.parametrize(
    ("dtype", "opset", "provider"),
    [
        (torch.float16, 20, "CPUExecutionProvider"),
        (torch.bfloat16, 22, "onnx.reference"),  # the first opset whose Conv takes bfloat16
        (torch.float64, 20, "onnx.reference"),
    ],
)
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype, opset: int, provider: str) -> None:
    model, x = make_block().to(dtype), torch.randn(1, 4, 5, 5, dtype=dtype)
    optimized = passfx.optimize(model, (x,))
    assert {item.dtype for item in optimized.module.state_dict().values()} == {dtype}
    report = optimized.export(tmp_path / "block.onnx", opset=opset)
    name = str(dtype).removeprefix("torch.")
    assert [item.dtype for item in (*report.inputs, *report.outputs)] == [name, name]
    assert report.parity is not None and report.parity.provider == provider
    graph = onnx.load(tmp_path / "block.onnx").graph
    kinds = {
        onnx.helper.tensor_dtype_to_np_dtype(item.data_type).name for item in graph.initializer
    }
    assert kinds == {name}


def test_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    items, pair = nested_inputs()
    optimized = passfx.optimize(Nested(), (items,), {"pair": pair})
    report = optimized.export(
        tmp_path / "a.onnx", input_names=["p", "q", "r", "s"], output_names=["t", "u", "v"]
    )
    graph = onnx.load(tmp_path / "a.onnx").graph
    for infos, found, names in (
        (report.inputs, graph.input, "pqrs"),
        (report.outputs, graph.output, "tuv"),
    ):
        assert [item.name for item in infos] == list(names) == [item.name for item in found]
    with pytest.raises(ExportError, match=r"the model has 4 input\(s\) \(.*\), not 1"):
        optimized.export(tmp_path / "b.onnx", input_names=["p"])
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]


def test_places_where_nothing_can_be_written(tmp_path: Path, optimized: Optimized) -> None:
    with pytest.raises(ExportError, match="is a folder; give the name of the file"):
        optimized.export(tmp_path)
    with pytest.raises(ExportError, match=r"the folder .*gone does not exist; create it first"):
        optimized.export(tmp_path / "gone" / "a.onnx")


def test_full_disk(tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ExportError, match=r"a\.onnx cannot be written: No space left on device"):
        optimized.export(tmp_path / "a.onnx", verify=False)
    assert not list(tmp_path.iterdir())


def test_unknown_precisions(tmp_path: Path, optimized: Optimized) -> None:
    with pytest.raises(ExportError, match="'int8' is not one of fp32, fp16, bf16"):
        optimized.export(tmp_path / "a.onnx", "int8")


@pytest.mark.parametrize("opset", [17, 26])
def test_opsets_beyond_the_range(tmp_path: Path, optimized: Optimized, opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not supported: 18 to 25 are"):
        optimized.export(tmp_path / "a.onnx", opset=opset)


@pytest.mark.parametrize("opset", [18, 25])
def test_opsets_at_the_ends_of_the_range(tmp_path: Path, optimized: Optimized, opset: int) -> None:
    report = optimized.export(tmp_path / "a.onnx", opset=opset)
    assert report.opset == opset
    (own,) = (item.version for item in onnx.load(tmp_path / "a.onnx").opset_import)
    assert own == opset


def test_without_onnxruntime(
    tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'passfx\[cpu\]'"):
        optimized.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    assert optimized.export(tmp_path / "a.onnx", verify=False).onnx is not None


def test_file_that_onnxruntime_cannot_run_is_an_error(
    tmp_path: Path, optimized: Optimized, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Fatal error: no such kernel\nand more")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(ExportError, match=r"^a\.onnx does not run: RuntimeError: Fatal.* kernel$"):
        optimized.export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
