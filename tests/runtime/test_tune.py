"""Tuning: what is tried, what is kept, and what is written."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import passfx
from passfx.errors import ExportError, SourceError, VerificationError
from passfx.runtime import Options, load
from passfx.runtime import tune as tuning
from passfx.runtime.race import Open, Timing
from passfx.runtime.sidecar import read_sidecar, sidecar_path
from passfx.runtime.tune import FUSED, GIVEN, HALF, SPLIT, Trial, TuneSettings, tune
from passfx.verify.error import relative_error
from tests.helpers import randomize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.last(y) + y)


X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    passfx.convert(randomize(Net()), tmp_path / "net.onnx", (X,))
    return tmp_path / "net.onnx"


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    passfx.convert(randomize(Net()), tmp_path / "fused.onnx", (X,), target="cuda")
    return tmp_path / "fused.onnx"


def fake_race(monkeypatch: pytest.MonkeyPatch, times: Mapping[str, list[float]]) -> list[list[str]]:
    """Instead of measuring: a time for each candidate whose name holds a word, race by race."""
    races: list[list[str]] = []

    def race(contestants: Mapping[str, Open], seconds: float, *, alone: bool) -> dict[str, Timing]:
        races.append(list(contestants))
        found = {}
        for name, opening in contestants.items():
            with opening() as run:
                run()
            given = next((times[word] for word in times if word in name), [1.0])
            found[name] = Timing(((given[min(len(races), len(given)) - 1],),))
        return found

    monkeypatch.setattr(tuning, "race", race)
    return races


def test_it_measures_for_real(model: Path) -> None:
    tuned = tune(model, TuneSettings(budget=0.5))
    sidecar = read_sidecar(model)
    assert sidecar == tuned.sidecar
    assert sidecar.batches == (2,)
    assert sidecar.options == tuned.chosen.options
    is_default = tuned.chosen == Trial(GIVEN, Options())
    assert (sidecar.speedup == 1.0) if is_default else (sidecar.speedup >= 1.02)
    measured = [row for row in tuned.results if row.milliseconds is not None]
    assert measured and all(row.milliseconds > 0 for row in measured)  # type: ignore[operator]
    assert all(row.rel_error is not None and row.rel_error <= 1e-4 for row in measured)
    expected = passfx.runtime.Session(model).run([X])[0]
    assert relative_error(load(model).run([X])[0], expected) <= 1e-4


def test_the_fastest_wins(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    races = fake_race(monkeypatch, {"no-layout no-memory_pattern": [0.4], "no-layout": [0.5]})
    tuned = tune(model)
    assert str(tuned.chosen) == "as given, no-layout no-memory_pattern"
    assert tuned.sidecar.speedup == pytest.approx(2.5)
    assert tuned.sidecar.model_path == model
    assert races[-1] == ["as given, default", "as given, no-layout no-memory_pattern"]
    assert load(model).options == Options(layout=False, memory_pattern=False)


def test_a_gain_within_noise_is_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_race(monkeypatch, {"no-layout": [0.99]})
    tuned = tune(model)
    assert tuned.chosen == Trial(GIVEN, Options()) and tuned.sidecar.speedup == 1.0


def test_who_loses_the_last_race_is_not_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three races choose one thread; the fourth, against the default alone, takes it back."""
    races = fake_race(monkeypatch, {"threads=1": [0.5, 0.5, 0.5, 0.5, 1.5]})
    tuned = tune(model)
    assert races[-1] == ["as given, default", "as given, threads=1"]
    assert len(races) == 5
    assert tuned.chosen == Trial(GIVEN, Options())


def test_fused_and_split_epilogues_race(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_race(monkeypatch, {SPLIT: [0.5]})
    tuned = tune(fused)
    assert tuned.chosen == Trial(SPLIT, Options())
    variant = fused.with_name("fused.tuned.onnx")
    assert tuned.sidecar.model_path == variant and variant.is_file()
    names = {item.name for item in fused.parent.iterdir()}
    assert names == {"fused.onnx", "fused.tuned.onnx", "fused.passfx.json"}
    expected = passfx.runtime.Session(fused).run([X])[0]
    assert relative_error(load(fused).run([X])[0], expected) <= 1e-5


def test_a_full_disk_is_an_error_that_is_told(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_race(monkeypatch, {SPLIT: [0.5]})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("passfx.files.os.replace", fail)
    with pytest.raises(ExportError, match="cannot be written: No space left on device"):
        tune(fused)


def test_what_is_off_is_refused_before_it_is_measured(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = fake_race(monkeypatch, {"no-layout": [0.1]})
    wrong = tuning.Session

    class Session(wrong):  # type: ignore[misc, valid-type]
        def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            results = super().run(inputs)
            return results if self.options.layout else [results[0] * 1.01]

    monkeypatch.setattr(tuning, "Session", Session)
    tuned = tune(model)
    assert tuned.chosen == Trial(GIVEN, Options())
    (refused,) = [row for row in tuned.results if row.refused]
    assert refused.candidate == "as given, no-layout" and refused.milliseconds is None
    assert refused.refused is not None and "tolerated 1.0e-04" in refused.refused
    assert not any("no-layout" in name for names in races for name in names)
    assert tune(model, TuneSettings(rtol=0.1)).chosen.options.layout is False


def test_what_does_not_run_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_race(monkeypatch, {})

    class Session(tuning.Session):  # type: ignore[misc]
        def __init__(self, model: Path, options: Options, device: int = 0) -> None:
            if not options.spinning:
                raise RuntimeError("no such thing\nand much more")
            super().__init__(model, options, device=device)

    monkeypatch.setattr(tuning, "Session", Session)
    tuned = tune(model)
    (refused,) = [row for row in tuned.results if row.refused]
    assert refused.refused == "RuntimeError: no such thing"


def test_an_untuned_session_that_is_off_is_an_error(model: Path) -> None:
    class Noisy(tuning.Session):  # type: ignore[misc]
        def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            return [item + torch.randn_like(item) for item in super().run(inputs)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "Session", Noisy)
        with pytest.raises(VerificationError, match="untuned session does not agree with the file"):
            tune(model)
    assert not sidecar_path(model).exists()


def test_without_a_budget_nothing_is_measured(model: Path) -> None:
    tuned = tune(model, TuneSettings(budget=1e-9))
    assert tuned.skipped == ("threads", "layout", "spinning", "memory pattern")
    assert tuned.results == () and tuned.chosen == Trial(GIVEN, Options())
    assert load(model).options == Options()


def test_every_batch_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    passfx.convert(randomize(Net()), path, (X,), dynamic_batch=True)
    fake_race(monkeypatch, {"no-layout": [0.5]})
    tuned = tune(path, TuneSettings(batches=[1, 5]))
    assert tuned.sidecar.batches == (1, 5)
    assert {row.batch for row in tuned.results} == {1, 5}


def test_a_fixed_batch_is_not_another(model: Path) -> None:
    with pytest.raises(SourceError, match="its batch size is 2, not 1"):
        tune(model, TuneSettings(batches=[1]))


def candidates(axis: str, variants: list[str], best: Trial) -> list[str]:
    files = {name: Path(name) for name in variants}
    return [str(item) for item in tuning._AXES["cuda"][axis](best, files)]


CUDA = Trial(GIVEN, Options("cuda"))


def test_on_a_gpu_fused_epilogues_keep_their_layout() -> None:
    """FusedConv is NCHW only, and has the bias inside already."""
    found = candidates("convolutions", [GIVEN, FUSED, HALF], CUDA)
    assert "as given, prefer_nhwc fuse_conv_bias" in found
    assert "fp16, prefer_nhwc" in found
    assert [name for name in found if name.startswith(FUSED)] == [f"{FUSED}, default"]
    found = candidates("convolutions", [GIVEN, SPLIT], CUDA)
    assert [name for name in found if name.startswith(GIVEN)] == [f"{GIVEN}, default"]
    assert f"{SPLIT}, prefer_nhwc" in found


def test_on_a_gpu_graphs_searches_and_tf32_are_tried() -> None:
    assert candidates("CUDA graph", [GIVEN], CUDA) == ["as given, cuda_graph"]
    assert candidates("TF32", [GIVEN], CUDA) == ["as given, no-tf32"]
    assert "as given, conv_algo_search=HEURISTIC" in candidates("algorithm search", [GIVEN], CUDA)


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    """As in files of before IR version 4: they do not become inputs of the variant in fp16."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xwy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0] * 4)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", values[:2], values[2:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(proto, tmp_path / "net.onnx")
    settings = TuneSettings("cuda", allow_fp16=True)
    found = tuning._variants(tmp_path / "net.onnx", tmp_path, settings, [{"x": torch.randn(2, 2)}])
    assert list(found) == [GIVEN, HALF]
    assert [port.name for port in passfx.runtime.Session(found[HALF]).inputs] == ["x"]


def test_tf32_and_fp16_are_allowed_what_they_round() -> None:
    assert CUDA.tolerance == Trial(HALF, Options("cuda", tf32=False)).tolerance == 1e-2
    assert Trial(GIVEN, Options("cuda", tf32=False)).tolerance == 1e-4
    assert Trial(GIVEN, Options()).tolerance == 1e-4
