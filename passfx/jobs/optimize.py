"""`passfx.optimize`: a model in, a faster graph module, its shortcuts and its report out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from passfx.analysis.cost import graph_cost
from passfx.analysis.shortcuts import Shortcut
from passfx.capture.bounds import Bounds
from passfx.capture.guard import InputCheck
from passfx.capture.program import Captured, capture
from passfx.capture.rules import has_traced
from passfx.capture.trial import later_rules
from passfx.capture.weights import hold_tensors
from passfx.errors import CaptureError
from passfx.export.settings import ExportSettings
from passfx.graph.aliases import FreshResults
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensors
from passfx.pipeline import Plan, Progress, optimize_graph, silent
from passfx.report.build import captured_report, timed
from passfx.report.model import Report
from passfx.source.inputs import dynamic_shapes
from passfx.source.load import load_source
from passfx.source.spec import Source, SourceSpec
from passfx.target import CPU, Target, find_target
from passfx.verify.finite import check_weights
from passfx.verify.parity import parity

if TYPE_CHECKING:
    from passfx.source.spec import Given


@dataclass(frozen=True)
class Optimized:
    """An optimised model.

    Attributes:
        module: the rewritten graph, called like the original model, whose weights need no
            gradient. What it returns shares memory only with what the model's result does.
        shortcuts: the shortcuts of the model as it was captured.
        report: what was found and done; `report.to_dict()` is the JSON report.
    """

    module: GraphModule
    shortcuts: tuple[Shortcut, ...]
    report: Report
    captured: Captured

    def export(
        self,
        path: str | PathLike[str],
        precision: str = "fp32",
        opset: int = 20,
        *,
        epilogues: bool | None = None,
        fp16_io: bool = False,
        accuracy: float | None = None,
        calibration: str | PathLike[str] | None = None,
        verify: bool = True,
        rtol: float | None = None,
        seed: int = 0,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        allow_nonfinite: bool = False,
        allow_guards: bool = False,
        progress: Progress = silent,
    ) -> Report:
        """Write the optimised model as ONNX and prove the file under ONNX Runtime.

        A file in fp16 or bf16 is proven with each of its results rounded to that precision, because
        the CPU provider computes such files in float32 and leaves the rounding out.

        Args:
            path: the file to write; weights of more than 2 GB lie beside it, in a file whose
                name is that of `path` with ".", a digest of them and ".data" after it.
            precision: "fp32" keeps every dtype as it is in the model; "fp16" and "bf16" keep
                operators in float32 that would overflow or lose too much, and report them.
            opset: the ONNX operator set, 18 to 25.
            epilogues: write convolution, bias, shortcut and relu as one com.microsoft.FusedConv,
                which only ONNX Runtime runs; by default for the target "cuda" in fp32.
            fp16_io: inputs and outputs in half precision too.
            accuracy: the relative error that one operator may add by half precision.
            calibration: an .npz file with an array of samples for each input, from which ranges
                are taken; by default the example inputs and random ones like them.
            verify: run the file on sample inputs and compare with the captured model in float64.
            rtol: how much further from it than twice the original model's own error it may be; by
                default 1e-6, for fp16 1e-2 and for bf16 8e-2.
            seed: of the sample inputs.
            input_names, output_names: one per flat tensor; by default the parameters of `forward`
                and the keys of its result ("output" where it has none).
            allow_nonfinite: accept weights that are NaN or infinite, and results on the example
                inputs that are, though nothing is proven of them.
            allow_guards: write the file although it is wrong for sizes that the model takes: those
                that the captured graph is not made for (`report.rules`), and no file can refuse.

        Returns:
            The report, with `parity`, `onnx` and `opset` filled in.

        Raises:
            ExportError: the model cannot be written, or only for fewer sizes than it takes; nothing
                is left behind.
            VerificationError: the file disagrees with the model; nothing is left behind.
            RuntimeUnavailableError: `verify` needs onnxruntime, which is not installed.
        """
        from passfx.jobs.export import export_file

        settings = ExportSettings(
            precision, opset, epilogues, fp16_io, accuracy, calibration, verify, rtol, seed,
            input_names, output_names, allow_nonfinite, allow_guards,
        )  # fmt: skip
        return export_file(self.module, self.captured, self.report, Path(path), settings, progress)

    def verify(
        self,
        path: str | PathLike[str],
        *,
        rtol: float | None = None,
        seed: int = 0,
        allow_nonfinite: bool = False,
    ) -> Report:
        """Prove an ONNX file against the captured model, whoever wrote it.

        A file in half precision of a model that is not is proven as `export` proves it.

        Returns:
            The report, with `parity`, `onnx` and `opset` filled in.

        Raises:
            ExportError: the file cannot be read, or its inputs or outputs are not the model's.
            VerificationError: it disagrees with the model.
            RuntimeUnavailableError: onnxruntime is not installed.
        """
        from passfx.jobs.export import verify_file

        settings = ExportSettings(rtol=rtol, seed=seed, allow_nonfinite=allow_nonfinite)
        return verify_file(self.captured, self.report, Path(path), settings)


def optimize(
    model: torch.nn.Module | ExportedProgram | str,
    args: "Given" = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = CPU.name,
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    verify: bool = True,
    allow_nonfinite: bool = False,
    share_weights: bool = False,
    save_repro: str | PathLike[str] | None = None,
) -> Optimized:
    """Capture a model, run the passes over it, and prove the result.

    Args:
        model: a module (in any mode; it is captured in eval mode and left as it was), a
            symbolically traced `GraphModule`, an `ExportedProgram`, or a source as text
            ("timm:resnet18", "file.py:factory", …), which brings its own inputs. DataParallel,
            DistributedDataParallel and `torch.compile` stand for the module in them.
        args, kwargs, dynamic_shapes: as `torch.export.export` takes them; besides, `args` may be
            a lone tensor, or a dict of inputs by their names.
        target: what the model is for, "cpu" or "cuda".
        skip, only: names of passes to leave out, or to run alone.
        verify: prove each rewrite in float64, and the whole result at the end.
        allow_nonfinite: accept weights that are NaN or infinite, and results on the example inputs
            that are, though nothing is proven of them.
        share_weights: weights that no pass changes stay in the memory of the model, which what is
            written into either then changes in both; by default they are copied.
        save_repro: a folder for rewrites that are undone, each as a `.pt2` of the operators before
            and after and a script that shows the failure.

    Raises:
        SourceError: no model or no inputs, an unknown target or pass, or `save_repro` cannot be a
            folder.
        CaptureError: the model cannot be captured.
        VerificationError: the result disagrees with the model, or nothing can be proven because
            weights or results are not finite.
    """
    plan = Plan(find_target(target), skip, only, verify, allow_nonfinite, save_repro)
    spec = SourceSpec(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    optimized = optimize_source(spec, plan, share_weights=share_weights)
    if not verify:
        return optimized
    seconds = dict(optimized.report.seconds)
    with timed(seconds, "verify"):
        proof = parity(
            optimized.captured,
            lambda inputs: tensors(run_flat(optimized.module, inputs, double=False)),
            provider="torch",
            allow_nonfinite=allow_nonfinite,
        ).checked()
    return replace(optimized, report=replace(optimized.report, parity=proof, seconds=seconds))


def capture_source(
    spec: SourceSpec,
    target: Target = CPU,
    progress: Progress = silent,
    *,
    share_weights: bool = True,
) -> Optimized:
    """A model as it was captured, with its shortcuts and costs: no pass has run."""
    seconds = dict.fromkeys(("capture", "passes", "verify", "export"), 0.0)
    if isinstance(spec.source, str):
        progress("load")
    source = load_source(spec)
    progress("capture")
    with timed(seconds, "capture"):
        captured = capture(
            source.model, source.args, source.kwargs, dynamic_shapes=source.dynamic_shapes
        )
        if spec.dynamic_batch and has_traced(captured.rules):
            captured = _with_one_batch(spec, source, captured)
        if not share_weights:
            hold_tensors(captured.graph_module, copied=True)
    report = captured_report(source, target, captured, seconds)
    return Optimized(captured.graph_module, report.shortcuts, report, captured)


def _with_one_batch(spec: SourceSpec, source: Source, captured: Captured) -> Captured:
    """A model captured for inputs of one batch, where that is all that its graph can take."""
    shapes = dynamic_shapes(source, spec, Dim("batch"))
    try:
        found = capture(source.model, source.args, source.kwargs, dynamic_shapes=shapes)
    except CaptureError:
        return captured
    return captured if has_traced(found.rules) else found


def optimize_source(
    spec: SourceSpec, plan: Plan, progress: Progress = silent, *, share_weights: bool = True
) -> Optimized:
    """Load, capture and rewrite a model, proving each rewrite but not yet the whole."""
    found = capture_source(spec, plan.target, progress, share_weights=share_weights)
    return rewritten(found, plan, progress)


def rewritten(found: Optimized, plan: Plan, progress: Progress = silent) -> Optimized:
    """A captured model after the passes of a plan; what was captured stays as it is."""
    seconds, captured = dict(found.report.seconds), found.captured
    if plan.verify and not plan.allow_nonfinite:
        check_weights(captured)
    bounds = Bounds(captured.graph_module, captured.flat_inputs)
    with timed(seconds, "passes"):
        module, passes = optimize_graph(
            captured, plan.passes, plan.verify, progress, plan.save_repro
        )
    rules = later_rules(bounds, captured.rules, captured.graph_module, module)
    captured = replace(captured, rules=rules)
    InputCheck.of(captured, module).attach(module)
    FreshResults.attach_to(module, captured.aliases)
    report = replace(
        found.report, after=graph_cost(module), passes=passes, seconds=seconds, rules=rules
    )
    return replace(found, module=module, report=report, captured=captured)


def find_shortcuts(
    model: torch.nn.Module | ExportedProgram | str,
    args: "Given" = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> tuple[Shortcut, ...]:
    """The identity and projection shortcuts of a model, in the order of its graph.

    Takes what `passfx.optimize` takes.

    Raises:
        SourceError: no model or no inputs.
        CaptureError: the model cannot be captured.
    """
    return capture_source(SourceSpec(model, args, kwargs, dynamic_shapes=dynamic_shapes)).shortcuts


@dataclass
class PassTransformer:
    """The passes behind the protocol of `torch.fx.Transformer`, for a traced graph.

    `PassTransformer(torch.fx.symbolic_trace(model), args).transform()` is an optimised
    `GraphModule` that is called like the traced one. `share_weights` is that of
    `passfx.optimize`.
    """

    module: GraphModule
    args: "Given" = ()
    kwargs: Mapping[str, Any] | None = None
    share_weights: bool = False

    def transform(self) -> GraphModule:
        """The optimised graph; `module` stays as it is.

        Raises:
            CaptureError, VerificationError: as `passfx.optimize`.
        """
        shares = self.share_weights
        return optimize(self.module, self.args, self.kwargs, share_weights=shares).module
