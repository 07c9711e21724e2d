"""The nine models that the GPU table measures, as far as a CPU can tell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import passfx
from passfx.report.model import Report
from passfx.runtime import Session, load
from passfx.runtime.race import Run, race, speedup
from passfx.runtime.tune import TuneSettings, tune
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from passfx.verify.error import relative_error
from tests.helpers import randomize
from tests.models import DEPLOYED

pytest.importorskip("timm")

NEVER_SLOWER = 0.97
ATTEMPTS = 3  # a shared machine has bad seconds; a tuned session that is slower is so every time


def files(name: str, folder: Path) -> tuple[Path, Path, Path, torch.Tensor, Report]:
    """A model as plain fp32, with fused epilogues, and in fp16; and the report of the last."""
    torch.manual_seed(0)
    source = load_source(SourceSpec(name))
    assert isinstance(source.model, nn.Module)
    optimized = passfx.optimize(randomize(source.model), source.args, target="cuda", verify=False)
    plain, fused, half = (folder / f"{kind}.onnx" for kind in ("plain", "fused", "half"))
    optimized.export(plain, epilogues=False, verify=False)
    optimized.export(fused, verify=False)
    report = optimized.export(half, "fp16")
    return plain, fused, half, source.args[0], report


@pytest.mark.parametrize("name", DEPLOYED)
def test_epilogues_half_precision_and_tuning(tmp_path: Path, name: str) -> None:
    plain, fused, half, x, report = files(name, tmp_path)

    expected, found = (Session(path).run([x])[0] for path in (plain, fused))
    assert relative_error(found, expected) <= 1e-5

    proof = report.parity
    assert proof is not None and proof.rel_error <= 1e-2  # an infinity is an infinite error
    assert "rounded to half precision" in proof.provider
    assert Session(half).run([x])[0].isfinite().all()

    tune(plain, TuneSettings(budget=4))
    assert any(tuned_ratio(plain, x) >= NEVER_SLOWER for _ in range(ATTEMPTS))


def tuned_ratio(path: Path, x: torch.Tensor) -> float:
    """How many times as fast the tuned session is as the default one, in one run."""

    @contextmanager
    def running(open_session: Callable[[Path], Session]) -> Iterator[Run]:
        session = open_session(path)
        yield lambda: session.run([x])

    timings = race({"default": partial(running, Session), "tuned": partial(running, load)}, 1.5)
    return speedup(timings["default"], timings["tuned"])
