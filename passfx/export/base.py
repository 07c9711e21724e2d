"""What a pass over a written file is: it rewrites an ONNX model in memory, in place."""

import ast
import time
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from passfx.record import PassReport, Refusal, Rewrite


@dataclass(frozen=True)
class FilePass:
    """One kind of rewrite; its fields are its settings, its docstring is its explanation."""

    name: ClassVar[str]

    def rewrite(self, model: ir.Model) -> tuple[list[Rewrite], list[Refusal]]:
        """Rewrite a model in place: what was done, and what was left with the reason."""
        raise NotImplementedError

    def run(self, model: ir.Model) -> PassReport:
        """Rewrite a model in place, and report it as the passes over the graph are reported."""
        started = time.perf_counter()
        rewrites, refusals = self.rewrite(model)
        seconds = time.perf_counter() - started
        return PassReport(self.name, seconds, False, tuple(rewrites), tuple(refusals))


def module_path(node: ir.Node) -> str:
    """The module that a node came from, "layer1.0.conv2", as torch's exporter recorded it."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""
