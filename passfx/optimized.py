"""`passfx.optimize`: a model in, a faster graph module, its shortcuts and its report out."""

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from passfx.analysis import shortcuts as shortcut_analysis
from passfx.analysis.cost import graph_cost
from passfx.analysis.shortcuts import Shortcut
from passfx.capture import Captured, capture
from passfx.errors import ExportError, SourceError, VerificationError
from passfx.files import check_writable
from passfx.graph.editor import Refusal, Rewrite
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensor, value
from passfx.pipeline import choose_passes, optimize_graph
from passfx.report.model import OnnxReport, PassReport, Report, TensorInfo
from passfx.verify import Parity, parity

TARGETS = ("cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "bf16")
OPSETS = range(18, 26)
HALVES = {"fp16": "float16", "bf16": "bfloat16"}
# What a file may add to twice the model's own error, where nothing else is asked for: the unit
# roundoff of fp16 is 2^-11, that of bf16 eight times as large.
DEFAULT_RTOL = {"fp32": 1e-6, "fp16": 1e-2, "bf16": 8e-2}

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """No progress."""


@dataclass(frozen=True)
class Optimized:
    """An optimised model.

    Attributes:
        module: the rewritten graph, called like the original model. Weights that no pass changed
            are shared with the original.
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
        progress: Progress = silent,
    ) -> Report:
        """Write the optimised model as ONNX and prove the file under ONNX Runtime.

        A file in fp16 or bf16 is proven with each of its results rounded to that precision, because
        the CPU provider computes such files in float32 and leaves the rounding out.

        Args:
            path: the file to write; weights of more than 2 GB go to `path` + ".data" beside it.
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

        Returns:
            The report, with `parity`, `onnx` and `opset` filled in.

        Raises:
            ExportError: the model cannot be written; nothing is left behind.
            VerificationError: the file disagrees with the model; nothing is left behind.
            RuntimeUnavailableError: `verify` needs onnxruntime, which is not installed.
        """
        from passfx.export.calibration import calibration_samples
        from passfx.export.epilogue import fuse_epilogues
        from passfx.export.onnx import export_onnx, staged
        from passfx.export.precision import lower_precision
        from passfx.runtime.parity import file_parity
        from passfx.runtime.session import require_onnxruntime, run_model

        path = Path(path)
        check_export(path, precision, opset, self.report.target, epilogues)
        if precision != "fp32":
            require_onnxruntime()
        elif verify:
            require_onnxruntime("pass --no-verify (verify=False)")
        if epilogues is None:
            epilogues = self.report.target == "cuda" and precision == "fp32"
        rtol = DEFAULT_RTOL[precision] if rtol is None else rtol
        seconds = dict(self.report.seconds)
        proof: Parity | None = None
        progress("export")
        with _writing(path), ExitStack() as stack:
            with timed(seconds, "export"):
                model = export_onnx(
                    self.module,
                    self.captured,
                    opset=opset,
                    input_names=input_names,
                    output_names=output_names,
                )
                passes = [*self.report.passes]
                if precision != "fp32":
                    samples = calibration_samples(
                        self.captured,
                        [str(item.name) for item in model.graph.inputs],
                        None if calibration is None else Path(calibration),
                        seed,
                    )
                    lower = partial(
                        lower_precision,
                        precision=precision,
                        samples=samples,
                        run=run_model,
                        target=self.report.target,
                        half_io=fp16_io,
                        accuracy=accuracy,
                    )
                    passes.append(_run_on_file("lower-precision", lower, model))
                if epilogues:
                    passes.append(_run_on_file("fuse-epilogues", fuse_epilogues, model))
                written, summary = stack.enter_context(staged(model, path))
            if verify:
                progress("verify")
                with timed(seconds, "verify"):
                    proof = file_parity(
                        self.captured, written, rtol=rtol, seed=seed, precision=precision
                    )
                check_parity(proof)
        inputs = _renamed(self.report.inputs, input_names)
        outputs = _renamed(self.report.outputs, output_names)
        return replace(
            self.report,
            opset=opset,
            precision=precision,
            inputs=halved(inputs, precision) if fp16_io else inputs,
            outputs=halved(outputs, precision) if fp16_io else outputs,
            passes=tuple(passes),
            parity=proof,
            onnx=OnnxReport(str(path), *summary),
            seconds=seconds,
        )


def optimize(
    model: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: str = "cpu",
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    verify: bool = True,
) -> Optimized:
    """Capture a model, run the passes over it, and prove the result.

    Args:
        model: a module (in any mode; it is captured in eval mode and left as it was), a
            symbolically traced `GraphModule`, or an `ExportedProgram`.
        args, kwargs, dynamic_shapes: as `torch.export.export` takes them.
        target: what the model is for, "cpu" or "cuda".
        skip, only: names of passes to leave out, or to run alone.
        verify: prove each rewrite in float64, and the whole result at the end.

    Raises:
        SourceError: an unknown target or pass.
        CaptureError: the model cannot be captured.
        VerificationError: the result disagrees with the model.
    """
    plan = Plan(target, tuple(skip), None if only is None else tuple(only), verify)
    optimized = optimize_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, plan=plan)
    if not verify:
        return optimized
    seconds = dict(optimized.report.seconds)
    with timed(seconds, "verify"):
        proof = parity(
            optimized.captured,
            lambda inputs: _tensors(run_flat(optimized.module, inputs, double=False)),
            provider="torch",
        )
    check_parity(proof)
    return replace(optimized, report=replace(optimized.report, parity=proof, seconds=seconds))


@dataclass(frozen=True)
class Plan:
    """What to do with a captured graph: the options that `optimize` and `convert` share.

    Raises:
        SourceError: an unknown target or pass.
    """

    target: str = "cpu"
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise SourceError(f"the target {self.target!r} is not one of {', '.join(TARGETS)}")
        choose_passes(self.skip, self.only)


def optimize_model(
    model: torch.nn.Module | ExportedProgram,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    dynamic_shapes: Any = None,
    plan: Plan,
    name: str | None = None,
    progress: Progress = silent,
) -> Optimized:
    """Capture and rewrite a model, proving each rewrite but not yet the whole.

    Args:
        name: what the report calls the model; by default its class.
        progress: told the name of each stage as it starts.
    """
    seconds = dict.fromkeys(("capture", "passes", "verify", "export"), 0.0)
    progress("capture")
    with timed(seconds, "capture"):
        captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    with timed(seconds, "passes"):
        module, runs = optimize_graph(
            captured,
            choose_passes(plan.skip, plan.only, plan.target),
            verify=plan.verify,
            progress=progress,
        )
    InputCheck.of(captured, module).attach(module)
    found = shortcut_analysis.find_shortcuts(captured.graph_module)
    report = Report(
        source=name or type(model).__name__,
        target=plan.target,
        precision="fp32",
        opset=None,
        inputs=_describe(captured.placeholders, captured.input_names, captured),
        outputs=_describe(captured.results, captured.output_names, captured),
        before=graph_cost(captured.graph_module),
        after=graph_cost(module),
        shortcuts=found,
        passes=tuple(
            PassReport(
                run.name, run.seconds, run.rolled_back, tuple(run.rewrites), tuple(run.refusals)
            )
            for run in runs
        ),
        parity=None,
        onnx=None,
        seconds=seconds,
    )
    return Optimized(module, found, report, captured)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Set `seconds[stage]` to the block's wall time, and "total" to the sum of all stages."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
    seconds["total"] = sum(value for key, value in seconds.items() if key != "total")


def _run_on_file(
    name: str, rewrite: Callable[[Any], tuple[list[Rewrite], list[Refusal]]], model: Any
) -> PassReport:
    """Rewrite an ONNX model in place, and report it as the passes over the graph are reported."""
    started = time.perf_counter()
    rewrites, refusals = rewrite(model)
    seconds = time.perf_counter() - started
    return PassReport(name, seconds, False, tuple(rewrites), tuple(refusals))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk or a folder without permission is no bug."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error


def halved(infos: tuple[TensorInfo, ...], precision: str) -> tuple[TensorInfo, ...]:
    """Inputs or outputs as `fp16_io` makes them."""
    half = HALVES.get(precision, "float32")
    return tuple(replace(info, dtype=half) if info.dtype == "float32" else info for info in infos)


def find_shortcuts(
    model: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> tuple[Shortcut, ...]:
    """The identity and projection shortcuts of a model, in the order of its graph.

    Takes what `passfx.optimize` takes.

    Raises:
        CaptureError: the model cannot be captured.
    """
    captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    return shortcut_analysis.find_shortcuts(captured.graph_module)


class PassTransformer:
    """The passes behind the protocol of `torch.fx.Transformer`, for a traced graph.

    `PassTransformer(torch.fx.symbolic_trace(model), args).transform()` is an optimised
    `GraphModule` that is called like the traced one.
    """

    def __init__(
        self, module: GraphModule, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.module = module
        self._args = args
        self._kwargs = kwargs

    def transform(self) -> GraphModule:
        """The optimised graph; `module` stays as it is.

        Raises:
            CaptureError, VerificationError: as `passfx.optimize`.
        """
        return optimize(self.module, self._args, self._kwargs).module


def check_export(
    path: Path, precision: str, opset: int, target: str, epilogues: bool | None = None
) -> None:
    """Refuse what cannot be written before any work is done.

    Raises:
        ExportError: the folder, the precision or the opset.
    """
    check_writable(path)
    if precision not in PRECISIONS:
        raise ExportError(f"the precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "bf16" and target == "cpu":
        raise ExportError(
            "ONNX Runtime's CPU provider has no bfloat16 kernels; use --precision fp16, or "
            "--target cuda"
        )
    if epilogues and precision != "fp32":
        raise ExportError(
            "FusedConv has kernels for fp32 only: --epilogues is for --precision fp32"
        )
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported: {OPSETS[0]} to {OPSETS[-1]} are")


def check_parity(proof: Parity) -> None:
    """Raise unless the proof holds.

    Raises:
        VerificationError: with the figures.
    """
    if not proof.passed:
        raise VerificationError(
            f"the result disagrees with the model: under {proof.provider} its relative error is "
            f"{proof.rel_error:.2e}, tolerated is {proof.tolerance:.2e} (the original model's own "
            f"is {proof.baseline_rel_error:.2e})"
        )


@dataclass(frozen=True)
class InputCheck:
    """A forward hook: a graph is only right for inputs like those that it was captured with.

    Attributes:
        parameters: of the graph's `forward`; the first `positional` of them are given by place.
        spec: how the inputs are nested.
        expected: each flat input; None for a number that may vary.
    """

    parameters: tuple[str, ...]
    positional: int
    spec: pytree.TreeSpec
    expected: tuple["_TensorInput | _FixedInput | None", ...]

    @classmethod
    def of(cls, captured: Captured, module: GraphModule) -> "InputCheck":
        """The check for a graph that was rewritten from a captured one."""
        return cls(
            tuple(inspect.signature(module.forward).parameters),
            len(captured.args),
            module._in_spec,
            tuple(map(_expected, captured.placeholders)),
        )

    def attach(self, module: GraphModule) -> None:
        """Check every call of a graph module and of its copies, to which hooks do not pass on."""
        module.register_forward_pre_hook(self, with_kwargs=True)
        module._register_deepcopy_hook(self.attach)

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Raise ValueError where an input differs in nesting, shape, dtype or fixed value."""
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        if len(args) > len(self.parameters) or given.keys() != set(self.parameters):
            return  # forward() itself says which one is missing or too much
        named = {name: given[name] for name in self.parameters}
        placed = tuple(named.pop(name) for name in self.parameters[: self.positional])
        try:
            flat = fx_pytree.tree_flatten_spec((placed, named), self.spec)
        except (LookupError, TypeError, RuntimeError):
            flat = []
        if len(flat) != len(pytree.tree_leaves((placed, named))):
            raise ValueError("the inputs are nested in another way than the example inputs were")
        for item, expected in zip(flat, self.expected, strict=True):
            if expected is not None:
                expected.check(item)


@dataclass(frozen=True)
class _TensorInput:
    """A tensor; a size that may vary is None."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]

    def check(self, item: Any) -> None:
        if not isinstance(item, torch.Tensor):
            raise ValueError(f"input {self.name} must be a tensor, not {item!r}")
        if item.dtype != self.dtype or not self._fits(item.shape):
            shape = ", ".join("any" if size is None else str(size) for size in self.sizes)
            raise ValueError(
                f"input {self.name} must be {self.dtype} [{shape}], not {item.dtype} "
                f"{list(item.shape)}; sizes that vary are declared with dynamic_shapes"
            )

    def _fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.sizes) and all(
            wanted in (None, size) for size, wanted in zip(shape, self.sizes, strict=True)
        )


@dataclass(frozen=True)
class _FixedInput:
    """A value that is no tensor and became part of the graph."""

    name: str
    value: Any

    def check(self, item: Any) -> None:
        if isinstance(item, torch.Tensor) or item != self.value:
            given = "a tensor" if isinstance(item, torch.Tensor) else repr(item)
            raise ValueError(
                f"input {self.name} must be {self.value!r}, with which the model was captured, "
                f"not {given}"
            )


def _expected(node: Node) -> _TensorInput | _FixedInput | None:
    given = value(node)
    if isinstance(given, torch.Tensor):
        sizes = tuple(size if isinstance(size, int) else None for size in given.shape)
        return _TensorInput(node.name, given.dtype, sizes)
    return None if isinstance(given, torch.SymInt) else _FixedInput(node.name, given)


def _describe(
    nodes: Sequence[Any], names: Sequence[str], captured: Captured
) -> tuple[TensorInfo, ...]:
    fakes = [fake for fake in map(tensor, nodes) if fake is not None]
    return tuple(
        TensorInfo(
            name,
            str(fake.dtype).removeprefix("torch."),
            tuple(
                size if isinstance(size, int) else captured.dim_name(str(size))
                for size in fake.shape
            ),
        )
        for name, fake in zip(names, fakes, strict=True)
    )


def _renamed(infos: tuple[TensorInfo, ...], names: Sequence[str] | None) -> tuple[TensorInfo, ...]:
    return tuple(map(lambda info, name: replace(info, name=name), infos, names)) if names else infos


def _tensors(results: Sequence[Any]) -> list[torch.Tensor]:
    return [item for item in results if isinstance(item, torch.Tensor)]
