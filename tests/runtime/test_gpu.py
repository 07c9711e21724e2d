"""What only a GPU can show; `pytest -m gpu` runs it, elsewhere it says why not."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

import passfx
from passfx.jobs.bench import BenchSettings, bench
from passfx.runtime import Options, Session, load
from passfx.runtime.tune import TuneSettings, tune
from passfx.source.spec import SourceSpec
from passfx.verify.error import relative_error
from tests.helpers import randomize

HAS_GPU = (
    torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and onnxruntime-gpu"),
]

EXACT = Options("cuda", tf32=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.head(torch.relu(self.second(y) + y).mean(dim=(2, 3)))


X = torch.randn(4, 3, 33, 31, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    passfx.convert(randomize(Net()), tmp_path / "net.onnx", (X,), target="cuda", epilogues=False)
    return tmp_path / "net.onnx"


@pytest.fixture
def expected(model: Path) -> torch.Tensor:
    return Session(model).run([X])[0]


def test_the_provider_is_used_and_agrees(model: Path, expected: torch.Tensor) -> None:
    session = Session(model, EXACT)
    assert session.provider == "CUDAExecutionProvider"
    for given in (X, X.pin_memory(), X.cuda()):
        (result,) = session.run([given])
        assert result.is_cuda
        assert relative_error(result.cpu(), expected) <= 1e-4


def test_an_input_still_being_computed_is_waited_for(model: Path, expected: torch.Tensor) -> None:
    session = Session(model, EXACT)
    given = X.cuda()
    for _ in range(50):
        large = torch.randn(4096, 4096, device="cuda")
        (result,) = session.run([given + 0 * (large @ large)[0, 0].nan_to_num()])
        assert relative_error(result.cpu(), expected) <= 1e-4


@pytest.mark.parametrize(
    "options",
    [
        Options("cuda", tf32=False, prefer_nhwc=True),
        Options("cuda", tf32=False, fuse_conv_bias=True),
        Options("cuda", tf32=False, conv_algo_search="HEURISTIC"),
        Options("cuda", tf32=False, cuda_graph=True),
    ],
    ids=str,
)
def test_every_option_agrees(model: Path, expected: torch.Tensor, options: Options) -> None:
    session = Session(model, options)
    for _ in range(3):
        assert relative_error(session.run([X])[0].cpu(), expected) <= 1e-4


def test_a_recorded_graph_follows_its_inputs(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    passfx.convert(randomize(Net()), path, (X,), dynamic_batch=True)
    graph, plain = Session(path, Options("cuda", tf32=False, cuda_graph=True)), Session(path)
    kept = []
    for batch in (1, 4, 1, 2, 4):
        x = torch.randn(batch, 3, 33, 31)
        kept.append((graph.run([x.cuda()])[0], plain.run([x])[0]))
    for result, reference in kept:
        assert relative_error(result.cpu(), reference) <= 1e-4


def test_fused_epilogues_agree(tmp_path: Path, expected: torch.Tensor) -> None:
    path = tmp_path / "fused.onnx"
    report = passfx.convert(randomize(Net()), path, (X,), target="cuda")
    assert report.onnx is not None and report.onnx.ops["FusedConv"] == 2
    (result,) = Session(path, EXACT).run([X])
    assert relative_error(result.cpu(), expected) <= 1e-4


@pytest.mark.parametrize("fp16_io", [False, True])
def test_half_precision_agrees(tmp_path: Path, expected: torch.Tensor, fp16_io: bool) -> None:
    path = tmp_path / "half.onnx"
    passfx.convert(randomize(Net()), path, (X,), target="cuda", precision="fp16", fp16_io=fp16_io)
    (result,) = Session(path, Options("cuda")).run([X.half() if fp16_io else X])
    assert relative_error(result.cpu(), expected) <= 1e-2


def test_tuning_is_never_slower_and_loads(model: Path, expected: torch.Tensor) -> None:
    tuned = tune(model, TuneSettings("cuda", budget=5, allow_fp16=True))
    assert tuned.sidecar.speedup >= 1.0
    (result,) = load(model).run([X])
    assert relative_error(result.cpu(), expected) <= 1e-2


def test_everyone_can_be_raced() -> None:
    settings = BenchSettings("cuda", seconds=1, tune_budget=2, compile=False)
    report = bench(SourceSpec(randomize(Net()), (X,)), [], settings)
    assert [row.failed for row in report.rows] == [None] * 4
    assert all(row.rel_error <= 1e-2 for row in report.rows if row.rel_error is not None)
