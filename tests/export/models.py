"""Models as ONNX in memory, and what they give under ONNX Runtime."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from passfx.capture.program import capture
from passfx.export.onnx import export_onnx
from passfx.runtime.session import Session


def exported(model: nn.Module, *args: Tensor, **options: Any) -> ir.Model:
    """The captured graph of a model, written as it is."""
    found = capture(model.eval(), args, **options)
    return export_onnx(found.graph_module, found)


def results(model: ir.Model, *args: Tensor) -> list[Tensor]:
    return Session(ir.to_proto(model).SerializeToString()).run(args)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def check(model: ir.Model, folder: Path) -> None:
    """The full check of a written file."""
    ir.save(model, folder / "model.onnx")
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
