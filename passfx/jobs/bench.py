"""`passfx bench`: the ways to run a model, side by side, in one run."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from passfx.errors import SourceError, named_line, quiet
from passfx.files import is_file
from passfx.graph.evaluate import run_flat
from passfx.graph.query import tensors
from passfx.graph.results import result_leaves
from passfx.jobs.optimize import optimize_source
from passfx.pipeline import Plan, Progress, silent
from passfx.report.bench import BenchReport, BenchRow
from passfx.runtime.inputs import draw_inputs
from passfx.runtime.options import Options
from passfx.runtime.race import race, speedup
from passfx.runtime.reference import open_session
from passfx.runtime.roofline import Peaks, ideal_seconds, measure_peaks
from passfx.runtime.session import Session, require_onnxruntime
from passfx.runtime.sidecar import read_sidecar
from passfx.runtime.tune import TuneSettings, device_name, tune
from passfx.source.load import load_source
from passfx.source.spec import Source, SourceSpec
from passfx.target import CPU, CUDA, Target, find_target
from passfx.verify.error import relative_error

PLAIN = "torch.onnx.export"
COMPILE_MODES = {CPU: "default", CUDA: "max-autotune"}

Ready = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class BenchSettings:
    """How the ways to run a model are raced.

    Attributes:
        provider: "cpu" or "cuda", for all of them.
        batches: by default that of the example inputs.
        shapes: of the inputs of files, as `passfx.runtime.tune.tune` takes them.
        precision: of the file that passfx writes.
        seconds: of each race.
        tune_budget: seconds of tuning before each race; 0 leaves "passfx tuned" out.
        compile: race torch.compile too, which takes long to prepare.
        device: the number of the GPU.
        seed: of random inputs.
    """

    provider: str = CPU.name
    batches: Sequence[int] | None = None
    shapes: Sequence[str] = ()
    precision: str = "fp32"
    seconds: float = 10
    tune_budget: float = 20
    compile: bool = True
    device: int = 0
    seed: int = 0


def bench(
    spec: SourceSpec | None,
    files: Sequence[Path],
    settings: BenchSettings,
    progress: Progress = silent,
) -> BenchReport:
    """Race PyTorch, torch.compile, a plain export, passfx and passfx tuned; and ONNX files.

    Each batch size is a race of its own: the contestants take turns, and speed-ups are ratios of
    turns that lie side by side. Errors are against the model in float64; of files alone, against
    the first file on the CPU. One that fails is a row with the reason.

    Args:
        spec: a source, or a model and its example inputs, whose first axes are the batch.
        files: ONNX files; each is run untuned, and tuned too if it has a sidecar.
        progress: told the name of each stage as it starts.

    Raises:
        SourceError, CaptureError, ExportError, RuntimeUnavailableError: there is nothing to race.
    """
    for file in files:
        if not is_file(file):
            raise SourceError(f"the file {file} does not exist")
    versions = {"torch": torch.__version__, "onnxruntime": require_onnxruntime().__version__}
    target = find_target(settings.provider, "provider")
    source, notes = None, list[str]()
    if spec is not None:
        progress("load")
        source = load_source(spec)
        notes += source.notes
    if target.is_gpu and not torch.cuda.is_available():
        raise SourceError("PyTorch sees no CUDA device; --provider cpu measures this machine")
    progress("peaks")
    peaks = measure_peaks(target, settings.device)
    rows: list[BenchRow] = []
    for batch in [None] if settings.batches is None else settings.batches:
        with tempfile.TemporaryDirectory() as folder:
            race = _Race(Path(folder), settings, target, progress)
            if source is not None:
                race.enter_source(source, batch)
            for file in files:
                race.enter_file(file, batch)
            rows += race.run(peaks)
            notes += race.notes
    best = max((row.roofline for row in rows if row.roofline), default=0.0)
    peaks = peaks.raised(best)
    rows = [
        replace(row, roofline=row.roofline / max(1.0, best)) if row.roofline else row
        for row in rows
    ]
    return BenchReport(
        source=", ".join([*([source.name] if source else []), *map(str, files)]),
        provider=settings.provider,
        device=device_name(settings.provider, settings.device),
        baseline=PLAIN if any(row.name == PLAIN and row.speedup for row in rows) else rows[0].name,
        reference="the model in float64" if source else f"{files[0]} on the CPU",
        versions=versions,
        peaks={**peaks.macs, "bandwidth": peaks.bandwidth},
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(frozen=True)
class _Contestant:
    """`open` gives what runs the model once; `file` is the ONNX file whose roofline counts."""

    open: Callable[[], AbstractContextManager[Ready]]
    file: Path
    error: float = 0.0


@dataclass
class _Race:
    """Those who take part at one batch size, and those who could not, by the reason."""

    folder: Path
    settings: BenchSettings
    target: Target
    progress: Progress
    inputs: list[Tensor] = field(default_factory=list)
    reference: Sequence[Tensor] = ()
    entrants: dict[str, _Contestant | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.place = torch.device(self.target.device(self.settings.device))
        self.untuned = Options(self.settings.provider)

    def enter_source(self, source: Source, batch: int | None) -> None:
        """PyTorch, torch.compile, a plain export, passfx, and passfx tuned."""
        args, kwargs = pytree.tree_map(partial(_batched, batch=batch), (source.args, source.kwargs))
        self.progress("passfx")
        optimized = optimize_source(SourceSpec(source.model, args, kwargs), Plan(self.target))
        captured, self.notes = optimized.captured, optimized.report.notes
        self.inputs = tensors(captured.flat_inputs)
        self.reference = tensors(run_flat(captured.graph_module, captured.flat_inputs))
        ours, plain = self.folder / "passfx.onnx", self.folder / "plain.onnx"
        optimized.export(ours, self.settings.precision, verify=False)
        given: Any = source.model
        is_program = isinstance(given, ExportedProgram)
        model = given.module() if is_program else copy.deepcopy(given).eval()
        self._enter("PyTorch", lambda: self._torch(model, args, kwargs, ours))
        if self.settings.compile:
            mode = COMPILE_MODES[self.target]
            compiled = partial(torch.compile, model, mode=mode)
            name = f"torch.compile ({mode})"
            self._enter(name, lambda: self._torch(compiled(), args, kwargs, ours))
        self._enter(PLAIN, lambda: self._plain(given, args, kwargs, plain))
        self._enter("passfx", lambda: self._session(ours, self.untuned))
        if self.settings.tune_budget:
            self._enter("passfx tuned", lambda: self._tuned(ours))

    def enter_file(self, file: Path, batch: int | None) -> None:
        """An ONNX file, untuned and as its sidecar says."""
        if not self.inputs:
            batches, given = None if batch is None else [batch], self.settings
            drawn = draw_inputs(Session(file).inputs, batches, given.shapes, given.seed)
            (self.inputs,) = drawn.values()
            self.reference = open_session(file).run(self.inputs)
        sidecar = read_sidecar(file)
        self._enter(str(file), lambda: self._session(file, self.untuned))
        if sidecar is not None and sidecar.options.provider == self.target.name:
            path, options = sidecar.model_path, sidecar.options
            self._enter(f"{file} tuned", lambda: self._session(path, options))

    def run(self, peaks: Peaks) -> list[BenchRow]:
        """Race those who take part; the rows in the order of entry."""
        self.progress("race")
        timings = race(
            {name: item.open for name, item in self.entrants.items() if not isinstance(item, str)},
            self.settings.seconds,
            alone=not self.target.is_gpu,
        )
        shapes = [tuple(item.shape) for item in self.inputs]
        batch = shapes[0][0] if shapes and shapes[0] else 1
        baseline = timings.get(PLAIN) or next(iter(timings.values()), None)
        rows = []
        for name, found in self.entrants.items():
            if isinstance(found, str) or baseline is None:
                rows.append(BenchRow(name, batch, failed=str(found)))
                continue
            timing = timings[name]
            p50, p90, p99 = (1000 * timing.percentile(q) for q in (50, 90, 99))
            rows.append(
                BenchRow(
                    *(name, batch, p50, p90, p99),
                    throughput=batch / timing.median,
                    speedup=speedup(baseline, timing),
                    roofline=ideal_seconds(found.file, shapes, peaks) / timing.median,
                    rel_error=found.error,
                    runs=timing.runs,
                )
            )
        return rows

    def _enter(self, name: str, build: Callable[[], _Contestant]) -> None:
        """Prepare and check a contestant; where that fails, the others go on."""
        self.progress(name)
        try:
            with quiet():
                built = build()
                with built.open() as run:
                    error = relative_error(list(run()), list(self.reference))
            self.entrants[name] = replace(built, error=error)
        except Exception as error:
            self.entrants[name] = named_line(error)

    def _session(self, path: Path, options: Options) -> _Contestant:
        inputs = [item.to(self.place) for item in self.inputs]
        session = partial(Session, path, options, device=self.settings.device)
        return _Contestant(lambda: nullcontext(partial(session().run, inputs)), path)

    def _tuned(self, path: Path) -> _Contestant:
        batches, budget = [self.inputs[0].shape[0]], self.settings.tune_budget
        device, seed = self.settings.device, self.settings.seed
        settings = TuneSettings(self.target.name, batches, budget=budget, device=device, seed=seed)
        tuned = tune(path, settings)
        return self._session(tuned.sidecar.model_path, tuned.sidecar.options)

    def _plain(self, model: Any, args: Any, kwargs: Any, path: Path) -> _Contestant:
        if isinstance(model, torch.nn.Module):
            model = copy.deepcopy(model).eval()
        torch.onnx.export(
            model, args, path, kwargs=kwargs, dynamo=True, verbose=False, external_data=False
        )
        return self._session(path, self.untuned)

    def _torch(self, model: Any, args: Any, kwargs: Any, path: Path) -> _Contestant:
        """A module on the provider's device; a run is over when the device is done."""
        run, place = model.to(self.place), partial(Tensor.to, device=self.place)
        args, kwargs = pytree.tree_map_only(Tensor, place, (args, kwargs))

        def once() -> Sequence[Tensor]:
            with torch.inference_mode():
                results = tensors(result_leaves(run(*args, **kwargs)))
            if self.target.is_gpu:
                torch.cuda.synchronize(self.place)
            return results

        return _Contestant(lambda: nullcontext(once), path)


def _batched(item: Any, *, batch: int | None) -> Any:
    """An example input repeated along its first axis to a batch size."""
    if batch is None or not isinstance(item, Tensor) or not item.ndim:
        return item
    return torch.cat([item] * -(-batch // item.shape[0]))[:batch]
