"""Find the fastest way to run a file on this machine, by measuring."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from passfx.errors import ExportError, VerificationError, named_line
from passfx.export.arrays import to_numpy
from passfx.export.epilogue import FuseEpilogues, split_epilogues
from passfx.export.onnx import staged
from passfx.export.precision import LowerPrecision
from passfx.files import check_writable, write_text, writing
from passfx.runtime.inputs import draw_inputs
from passfx.runtime.options import CONV_ALGO_SEARCHES, Options
from passfx.runtime.race import Run, race, speedup
from passfx.runtime.reference import open_session, run_model
from passfx.runtime.session import Session, require_onnxruntime
from passfx.runtime.sidecar import Sidecar, sidecar_path, sidecar_text
from passfx.target import CPU, CUDA, TARGETS
from passfx.verify.error import relative_error

GIVEN, FUSED, SPLIT, HALF = "as given", "epilogues fused", "epilogues split", "fp16"
FULL_TOLERANCE = 1e-4  # of float32 against float32 on another provider
HALF_TOLERANCE = 1e-2  # where products or weights have 10 bits of mantissa
_GAIN = 1.02  # what is gained at least; less is noise
_LOSS = 0.97  # what one batch size may lose at most
_FINAL_SHARE = 0.25  # of the budget, for the winner against the untuned session


@dataclass(frozen=True)
class Trial:
    """A variant of the file, and what to open it with."""

    variant: str
    options: Options

    def __str__(self) -> str:
        return f"{self.variant}, {self.options}"

    @property
    def tolerance(self) -> float:
        """How far it may be from the given file in float32 on the CPU."""
        is_full = not (self.options.target.is_gpu and self.options.tf32)
        return FULL_TOLERANCE if is_full and self.variant != HALF else HALF_TOLERANCE


@dataclass(frozen=True)
class Result:
    """What a candidate came to at one batch size.

    Attributes:
        axis: of the search, for which it was measured.
        milliseconds: the median of one run; None where it was not measured.
        speedup: against an untuned session of the given file, in the same race.
        rel_error: from the given file on the CPU.
        refused: why it was not measured.
    """

    axis: str
    candidate: str
    batch: int
    milliseconds: float | None = None
    speedup: float | None = None
    rel_error: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning.

    Attributes:
        chosen: the candidate that was kept.
        sidecar: what was written beside the file.
        results: every candidate at every batch size, in the order of the search.
        skipped: the axes of the search for which the budget did not last.
    """

    chosen: Trial
    sidecar: Sidecar
    results: tuple[Result, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class TuneSettings:
    """What is searched, and for how long.

    Attributes:
        provider: "cpu" or "cuda".
        batches: sizes of the first axis of the inputs; by default the file's own, or 1.
        shapes: "[NAME:]1x3x224x224" of inputs of which more than the first axis varies.
        budget: seconds of measuring; opening and warming up come on top.
        allow_fp16: try half precision too, on the GPU; the CPU provider has no kernels for it.
        rtol: how far a result may be from the given file on the CPU, as
            max |difference| / max |result|; by default 1e-4, and 1e-2 for TF32 and fp16.
        device: the number of the GPU.
        seed: of the random inputs.
    """

    provider: str = CPU.name
    batches: Sequence[int] | None = None
    shapes: Sequence[str] = ()
    budget: float = 60
    allow_fp16: bool = False
    rtol: float | None = None
    device: int = 0
    seed: int = 0


_DEFAULT = TuneSettings()


def tune(
    model: Path, settings: TuneSettings = _DEFAULT, progress: Callable[[str], None] = lambda _: None
) -> Tuned:
    """Measure the sensible combinations of options, and write the best beside the file.

    The search goes axis by axis: the best so far and its alternatives race against an untuned
    session, and what is faster by more than noise is kept. At last the winner races against the
    untuned session alone; if it does not win again, the untuned one is kept. A variant of the file
    (fused epilogues, half precision) that wins is written as "MODEL.tuned.onnx".

    Args:
        model: an ONNX file.
        progress: told what is measured.

    Raises:
        SourceError: the file, a batch size or a shape does not serve.
        VerificationError: even an untuned session does not agree with the file on the CPU.
        ExportError: the file is not ONNX, or the result cannot be written.
        RuntimeUnavailableError: the provider is not there.
    """
    check_writable(sidecar_path(model))
    default = Trial(GIVEN, Options(settings.provider))
    ports = Session(model, default.options, device=settings.device).inputs
    inputs = draw_inputs(ports, settings.batches, settings.shapes, settings.seed)
    names = [port.name for port in ports]
    with tempfile.TemporaryDirectory() as folder:
        named = [dict(zip(names, given, strict=True)) for given in inputs.values()]
        variants = _variants(model, Path(folder), settings, named)
        search = _Search(variants, inputs, settings, default)
        best, gain, skipped = search.run(progress)
        device = device_name(settings.provider, settings.device)
        place = model if best.variant == GIVEN else tuned_path(model)
        rows = tuple(map(asdict, search.results))
        sidecar = Sidecar(place, best.options, tuple(inputs), device, gain, rows)
        if best.variant != GIVEN:
            _save(ir.load(variants[best.variant]), place)
    versions = {"onnxruntime": require_onnxruntime().__version__, "torch": torch.__version__}
    write_text(sidecar_path(model), sidecar_text(model, sidecar, versions))
    return Tuned(best, sidecar, tuple(search.results), skipped)


def tuned_path(model: Path) -> Path:
    """Where a variant that wins lies: "model.tuned.onnx" beside "model.onnx"."""
    return model.with_suffix(".tuned.onnx")


def _variants(
    model: Path, folder: Path, settings: TuneSettings, inputs: Sequence[Mapping[str, Tensor]]
) -> dict[str, Path]:
    """The file, and what can be made of it, each a file."""
    variants = {GIVEN: model}

    def add(name: str, changed: ir.Model) -> None:
        variants[name] = folder / f"{model.stem}.{len(variants)}.onnx"
        _save(changed, variants[name])

    loaded = ir.load(model)
    if split_epilogues(loaded):
        add(SPLIT, loaded)
    target = TARGETS[settings.provider]
    if target.is_gpu:
        plain = variants.get(SPLIT, model)
        fused, half = ir.load(plain), ir.load(plain)
        if SPLIT not in variants and FuseEpilogues().rewrite(fused)[0]:
            add(FUSED, fused)
        if settings.allow_fp16:
            samples = [{name: to_numpy(item) for name, item in given.items()} for given in inputs]
            with suppress(ExportError):  # nothing in it can be converted
                if LowerPrecision("fp16", samples, run_model, target).rewrite(half)[0]:
                    add(HALF, half)
    return variants


def _save(model: ir.Model, path: Path) -> None:
    with writing(path), staged(model, path):
        pass


Axis = Callable[[Trial, Mapping[str, Path]], list[Trial]]


def _option(name: str, *values: Any) -> Axis:
    """The best with each of the values of an option."""
    return lambda best, _: [
        replace(best, options=replace(best.options, **{name: value})) for value in values
    ]


def _threads(best: Trial, variants: Mapping[str, Path]) -> list[Trial]:
    """One, half of them, and all that this process may use (hyper-threads too)."""
    has_affinity = hasattr(os, "sched_getaffinity")
    usable = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return _option("threads", *sorted({1, max(1, usable // 2), usable}))(best, variants)


def _convolutions(best: Trial, variants: Mapping[str, Path]) -> list[Trial]:
    """Each variant in both layouts, with the bias inside or not; FusedConv is NCHW only."""
    fused = FUSED if FUSED in variants else GIVEN if SPLIT in variants else None
    return [
        Trial(variant, replace(best.options, prefer_nhwc=nhwc, fuse_conv_bias=bias))
        for variant in variants
        for nhwc in (False, True)
        for bias in (False, True)
        if variant != fused or not (nhwc or bias)
    ]


_AXES: dict[str, dict[str, Axis]] = {
    CPU.name: {
        "epilogues": lambda best, variants: [replace(best, variant=name) for name in variants],
        "threads": _threads,
        "layout": _option("layout", False),
        "spinning": _option("spinning", False),
        "memory pattern": _option("memory_pattern", False),
    },
    CUDA.name: {
        "convolutions": _convolutions,
        "CUDA graph": _option("cuda_graph", True),
        "algorithm search": _option("conv_algo_search", *CONV_ALGO_SEARCHES),
        "TF32": _option("tf32", False),
    },
}


@dataclass
class _Search:
    """Runs candidates, compares them, and keeps the record."""

    variants: Mapping[str, Path]
    inputs: Mapping[int, list[Tensor]]
    settings: TuneSettings
    default: Trial
    results: list[Result] = field(default_factory=list)
    _errors: dict[Trial, dict[int, float]] = field(default_factory=dict)
    _kept: dict[Trial, Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target, given = TARGETS[self.settings.provider], self.inputs.items()
        self._is_gpu, place = target.is_gpu, target.device(self.settings.device)
        reference = open_session(self.variants[GIVEN])
        self._references = {batch: reference.run(items) for batch, items in given}
        self._inputs = {batch: [item.to(place) for item in items] for batch, items in given}

    def run(self, progress: Callable[[str], None]) -> tuple[Trial, float, tuple[str, ...]]:
        """The best candidate, how many times as fast it is, and the axes without time."""
        axes, budget = _AXES[self.settings.provider], self.settings.budget
        best = self.default = self._first()
        end = time.monotonic() + budget * (1 - _FINAL_SHARE)
        skipped = []
        for number, (name, axis) in enumerate(axes.items()):
            alternatives = [item for item in axis(best, self.variants) if item != best]
            left = (end - time.monotonic()) / (len(axes) - number)
            if left <= 0:
                skipped += [name] if alternatives else []
                continue
            progress(name)
            best = self._faster(name, best, alternatives, left)
            for item in self._kept.keys() - {best, self.default}:
                del self._kept[item]
        if best != self.default:
            progress("confirm")
            gains = self._race("confirm", [best], budget * _FINAL_SHARE)[best]
            if (gain := geometric_mean(gains)) >= _GAIN and min(gains) >= _LOSS:
                return best, gain, tuple(skipped)
        return self.default, 1.0, tuple(skipped)

    def _first(self) -> Trial:
        """An untuned session; without TF32 where that is too far from the file."""
        exact = _option("tf32", False)(self.default, {}) if self._is_gpu else []
        for candidate in (self.default, *exact):
            if self._admit("untuned", candidate):
                return candidate
        raise VerificationError(
            f"an untuned session does not agree with the file on the CPU: "
            f"{self.results[-1].refused}; --rtol tolerates more"
        )

    def _faster(
        self, axis: str, best: Trial, alternatives: Sequence[Trial], seconds: float
    ) -> Trial:
        """The best, or the alternative that beats it by more than noise."""
        admitted = [item for item in alternatives if self._admit(axis, item)]
        if not admitted:
            return best
        raced = self._race(axis, [best, *admitted], seconds)
        gains = {item: geometric_mean(found) for item, found in raced.items()}
        fastest = max(admitted, key=gains.__getitem__)
        return fastest if gains[fastest] > _GAIN * gains[best] else best

    def _admit(self, axis: str, candidate: Trial) -> bool:
        """Whether a candidate runs and agrees; where not, the record says why."""
        if candidate in self._errors:
            return True
        tolerance = candidate.tolerance if self.settings.rtol is None else self.settings.rtol
        errors: dict[int, float] = {}
        for batch, given in self._inputs.items():
            refused = None
            try:
                results = self._session(candidate).run(given)
                errors[batch] = relative_error(results, self._references[batch])
                if not errors[batch] <= tolerance:
                    refused = f"relative error {errors[batch]:.1e}, tolerated {tolerance:.1e}"
            except Exception as failure:  # whatever ONNX Runtime raises is about the candidate
                refused = named_line(failure)
            if refused is not None:
                row = Result(axis, str(candidate), batch, None, None, errors.get(batch), refused)
                self.results.append(row)
                return False
        self._errors[candidate] = errors
        return True

    def _race(
        self, axis: str, candidates: Sequence[Trial], seconds: float
    ) -> dict[Trial, list[float]]:
        """The speed-up of each candidate over the untuned session, for each batch size."""
        gains: dict[Trial, list[float]] = {item: [] for item in (self.default, *candidates)}
        for batch in self._inputs:
            contestants = {str(item): partial(self._open, item, batch) for item in gains}
            timings = race(contestants, seconds / len(self._inputs), alone=not self._is_gpu)
            for item, found in gains.items():
                timing, error = timings[str(item)], self._errors[item][batch]
                found.append(speedup(timings[str(self.default)], timing))
                row = Result(axis, str(item), batch, 1000 * timing.median, found[-1], error)
                self.results.append(row)
        return gains

    def _open(self, candidate: Trial, batch: int) -> AbstractContextManager[Run]:
        return nullcontext(partial(self._session(candidate).run, self._inputs[batch]))

    def _session(self, candidate: Trial) -> Session:
        """A session; on a GPU, where opening measures algorithms, those in use are kept."""
        if candidate in self._kept:
            return self._kept[candidate]
        path, device = self.variants[candidate.variant], self.settings.device
        session = Session(path, candidate.options, device=device)
        if self._is_gpu:
            self._kept[candidate] = session
        return session


def device_name(provider: str, device: int) -> str:
    """What the figures were measured on."""
    if TARGETS[provider].is_gpu:
        return str(torch.cuda.get_device_name(device))
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The model of the processor, which Python knows on some systems only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
