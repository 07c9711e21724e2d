"""file.pt2: a program that torch.export saved."""

from pathlib import Path

import pytest
import torch
from torch import nn

from passfx.errors import SourceError
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec


def test_program_saved_by_torch_export(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    model, x = nn.Linear(3, 2).eval(), torch.randn(4, 3)
    torch.export.save(torch.export.export(model, (x,)), path)
    program = load_source(SourceSpec(str(path))).model
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)
    with pytest.raises(SourceError, match="finished program: it takes no --arg and no --weights"):
        load_source(SourceSpec(str(path), arguments={"width": 3}))
    shaped = load_source(SourceSpec(str(path), input_shapes=["4x3"]))
    assert shaped.args[0].shape == (4, 3)


def test_no_program(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("not a program")
    with pytest.raises(SourceError, match=r"net\.pt2 is not a program saved with torch\.export"):
        load_source(SourceSpec(str(path)))
