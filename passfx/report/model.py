"""The report: everything that one conversion found, did and measured, as frozen dataclasses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from passfx.analysis.cost import GraphCost
from passfx.analysis.shortcuts import Shortcut
from passfx.graph.editor import Refusal, Rewrite
from passfx.verify import Parity
from passfx.version import __version__


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: dtype as torch names it ("float32"), a dynamic size by its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class PassReport:
    """What one pass did, over all rounds."""

    name: str
    seconds: float
    rolled_back: bool
    rewrites: tuple[Rewrite, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class OnnxReport:
    """The file that was written; `bytes` includes external data."""

    path: str
    bytes: int
    nodes: int
    ops: dict[str, int]


@dataclass(frozen=True)
class Report:
    """One conversion. What was not done is None: `parity` and `onnx` of an optimisation alone."""

    source: str
    target: str
    precision: str
    opset: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    before: GraphCost
    after: GraphCost
    shortcuts: tuple[Shortcut, ...]
    passes: tuple[PassReport, ...]
    parity: Parity | None
    onnx: OnnxReport | None
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; the keys are stable."""
        fields = dataclasses.asdict(self)
        graph = {"before": fields.pop("before"), "after": fields.pop("after")}
        head = {name: fields.pop(name) for name in _HEAD}
        return {"passfx": __version__, **head, "graph": graph, **fields}


_HEAD = ("source", "target", "precision", "opset", "inputs", "outputs")
