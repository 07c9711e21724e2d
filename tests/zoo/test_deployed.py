"""The nine models that the GPU table measures, as far as a CPU can tell."""

from pathlib import Path

import pytest
import torch
from torch import nn

import passfx
from passfx.report.model import Report
from passfx.runtime import Session
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from passfx.verify.error import relative_error
from tests.models import DEPLOYED, randomize

pytest.importorskip("timm")


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


@pytest.mark.slow  # tests/export has one of them for each of the two by default
@pytest.mark.parametrize("name", DEPLOYED)
def test_epilogues_and_half_precision(tmp_path: Path, name: str) -> None:
    plain, fused, half, x, report = files(name, tmp_path)

    expected, found = (Session(path).run([x])[0] for path in (plain, fused))
    assert relative_error(found, expected) <= 1e-5

    proof = report.parity
    assert proof is not None and proof.rel_error <= 1e-2  # an infinity is an infinite error
    assert "rounded to half precision" in proof.provider
    assert Session(half).run([x])[0].isfinite().all()
