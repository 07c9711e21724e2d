"""What a file is to be: the options of an export as one value."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from passfx.capture.rules import SizeRule
from passfx.errors import ExportError
from passfx.files import check_apart, check_writable
from passfx.target import Target

PRECISIONS = ("fp32", "fp16", "bf16")
OPSETS = range(18, 26)
HALVES = {"fp16": "float16", "bf16": "bfloat16"}
# What a file may add to twice the model's own error, where nothing else is asked for: the unit
# roundoff of fp16 is 2^-11, that of bf16 eight times as large.
DEFAULT_RTOL = {"fp32": 1e-6, "fp16": 1e-2, "bf16": 8e-2}
# Names that say that a file is none of ONNX; others, and none at all, are the user's own.
_OTHER_FORMATS = (
    *(".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".safetensors", ".npz", ".npy", ".h5"),
    *(".ort", ".engine", ".plan", ".tflite", ".pb", ".mlmodel", ".mlpackage"),
    *(".json", ".html", ".md", ".txt", ".yaml", ".yml", ".py", ".zip"),
)


@dataclass(frozen=True)
class ExportSettings:
    """How a file is written and proven; `Optimized.export` says what each field means."""

    precision: str = "fp32"
    opset: int = 20
    epilogues: bool | None = None
    fp16_io: bool = False
    accuracy: float | None = None
    calibration: str | PathLike[str] | None = None
    verify: bool = True
    rtol: float | None = None
    seed: int = 0
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    allow_nonfinite: bool = False
    allow_guards: bool = False

    @property
    def tolerance(self) -> float:
        """How much further than the model a file may be, relatively."""
        return DEFAULT_RTOL[self.precision] if self.rtol is None else self.rtol

    def fuses_epilogues(self, target: Target) -> bool:
        """Whether FusedConv is written."""
        if self.epilogues is None:
            return target.fuses_epilogues and self.precision == "fp32"
        return self.epilogues

    def check_rules(self, rules: Sequence[SizeRule]) -> None:
        """Refuse a file that would be wrong at sizes which the model takes, unless it is allowed.

        Raises:
            ExportError: the first such rule, and the ways out.
        """
        traced = next((rule for rule in rules if rule.origin == "traced"), None)
        if traced is not None and not self.allow_guards:
            raise ExportError(
                f"{traced}, while the model takes other sizes, for which the file would be wrong: "
                "declare the range (--dynamic NAME:AXIS=MIN:MAX, or Dim(min=, max=) in "
                "dynamic_shapes), or accept it with --allow-guards (allow_guards=True)"
            )

    def check(self, path: Path, target: Target) -> None:
        """Refuse what cannot be written before any work is done.

        Raises:
            ExportError: the name, the folder, the precision or the opset.
        """
        if path.suffix.lower() in _OTHER_FORMATS:
            raise ExportError(
                f"{path} would be an ONNX file with the name of another format; call it "
                f"{path.with_suffix('.onnx').name}"
            )
        check_writable(path)
        calibration = None if self.calibration is None else Path(self.calibration)
        check_apart({"the output": path}, {"the calibration samples": calibration})
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ExportError(f"the precision {self.precision!r} is not one of {known}")
        check_precision(self.precision, target)
        if self.epilogues and self.precision != "fp32":
            raise ExportError(
                "FusedConv has kernels for fp32 only: --epilogues is for --precision fp32"
            )
        if self.opset not in OPSETS:
            first, last = OPSETS[0], OPSETS[-1]
            raise ExportError(f"opset {self.opset} is not supported: {first} to {last} are")


def check_precision(precision: str, target: Target) -> None:
    """Refuse a precision that the target has no kernels for.

    Raises:
        ExportError: with what to do instead.
    """
    if precision not in target.precisions:
        raise ExportError(
            "ONNX Runtime's CPU provider has no bfloat16 kernels; use --precision fp16, or "
            "--target cuda"
        )
