"""The report: everything that one conversion found, did and measured, as frozen dataclasses."""

from dataclasses import asdict, dataclass
from typing import Any

from passfx.analysis.cost import GraphCost
from passfx.analysis.shortcuts import Shortcut
from passfx.capture.rules import SizeRule
from passfx.record import OnnxReport, PassReport, TensorInfo
from passfx.verify.parity import Parity
from passfx.version import __version__


@dataclass(frozen=True)
class Report:
    """One conversion. What was not done is None: `parity` and `onnx` of an optimisation alone.

    `notes` are sentences that the figures are to be read with: what was made of the source, where
    the weights are from, and what the captured graph leaves out of what the model does.
    """

    source: str
    target: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    before: GraphCost
    after: GraphCost
    shortcuts: tuple[Shortcut, ...]
    seconds: dict[str, float]
    passes: tuple[PassReport, ...] = ()
    parity: Parity | None = None
    onnx: OnnxReport | None = None
    notes: tuple[str, ...] = ()
    rules: tuple[SizeRule, ...] = ()

    @property
    def opset(self) -> int | None:
        """The ONNX operator set of the file."""
        return self.onnx.opset if self.onnx else None

    @property
    def operators(self) -> list[tuple[str, int, int]]:
        """Each operator, and how often it occurs before and after; the most frequent first."""
        before, after = self.before.ops, self.after.ops
        names = sorted({*before, *after}, key=lambda name: (-before.get(name, 0), name))
        return [(name, before.get(name, 0), after.get(name, 0)) for name in names]

    @property
    def counted_at(self) -> str:
        """The sizes that MACs are counted for: "batch 1", where all inputs agree in it."""
        shapes = [info.shape for info in self.inputs if info.shape]
        batches = {1 if isinstance(shape[0], str) else shape[0] for shape in shapes}
        return f"batch {batches.pop()}" if len(batches) == 1 else "the example's sizes"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; the keys are stable."""
        fields = {"passfx": __version__, **asdict(self), "opset": self.opset}
        fields["rules"] = [rule.to_dict() for rule in self.rules]
        if self.onnx:
            del fields["onnx"]["opset"]
        if self.parity:
            del fields["parity"]["unchanged"]
            fields["notes"] = (*self.notes, *([self.parity.doubt] if self.parity.doubt else []))
        fields["graph"] = {"before": fields.pop("before"), "after": fields.pop("after")}
        for item in fields["passes"]:
            for refusal in item["refusals"]:
                del refusal["undone"]
        keys = (
            *("passfx", "source", "target", "precision", "opset", "inputs", "outputs", "notes"),
            *("graph", "shortcuts", "passes", "parity", "onnx", "seconds", "rules"),
        )
        return {name: fields[name] for name in keys}
