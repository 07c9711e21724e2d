"""One model in one mode: convert it, check the file, compare it with what others make of it."""

import json
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks.zoo.cases import Case, matching
from tests.benchmarks.zoo.values import CONSTANT, TIMES, TOLERANCE, cast, distance, flat, randomize

OPSET = 20
BATCHES = {"static": (1, 1), "dynamic": (1, 3)}  # of the fresh inputs that are checked
UNCLEAR = re.compile(r"TORCH_LOGS|UserError|This is a bug|Unsupported|^\w+Error:")
NORMS = ("BatchNormalization", "InstanceNormalization")


def work(name: str, mode: str, folder: str) -> None:
    """Fill record.json in `folder` as far as it gets; what ONNX Runtime warns of is in `stderr`."""
    place = Path(folder)
    noise = os.open(place / "stderr", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(noise, stream)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    (case,) = (case for case in matching(name) if case.name == name)
    _Work(case, mode, place).run()


class _Work:
    """One case; every stage is written down before it starts."""

    def __init__(self, case: Case, mode: str, place: Path) -> None:
        self.case, self.mode, self.place = case, mode, place
        self.record: dict[str, Any] = {"name": case.name, "mode": mode}

    def stage(self, name: str) -> None:
        """Keep what is known."""
        self.record["stage"] = name
        self.record["seconds_so_far"] = round(time.process_time(), 1)
        staged = self.place / "staged"
        staged.write_text(json.dumps(self.record))
        staged.replace(self.place / "record.json")

    def took(self, name: str, started: tuple[float, float]) -> None:
        """Wall and processor time; what else the machine does changes the second little."""
        spent = [now - then for now, then in zip(_clock(), started, strict=True)]
        for key, value in zip(("seconds", "cpu_seconds"), spent, strict=True):
            self.record.setdefault(key, {})[name] = round(value, 2)

    def run(self) -> None:
        """All stages, in the order of what matters most."""
        self.stage("build")
        model = randomize(self.case.build()).eval()
        self.record["parameters"] = sum(item.numel() for item in model.parameters())
        args, kwargs = self.case.inputs(model, 2 if self.mode == "dynamic" else 1)
        self.stage("export plainly")
        plain, plain_error = self.place / "plain.onnx", None
        # A dynamic export in full only where something must be told of it: it takes half the time.
        if self.mode == "static":
            plain_error = self.export_plainly(model, plain, args, kwargs)
        if plain_error is not None:
            self.record["plain"] = plain_error
        self.stage("convert")
        path = self.place / "passfx.onnx"
        failure = self.convert(model, path, args, kwargs)
        if failure is None:
            self.stage("check")
            failure = self.check(model, path)
        else:
            self.judge_refusal(model, plain, plain_error, args, kwargs, failure)
        self.record.setdefault("outcome", "failed" if failure else "right")
        if failure:
            self.record["error"] = failure
        self.record["warnings"] = self.runtime_warnings()
        if self.mode == "static" and plain_error is None:
            self.peers(plain)
        self.stage("done")

    def export_plainly(self, model: nn.Module, path: Path, args: Any, kwargs: Any) -> str | None:
        """What a user does without passfx; the sentence that says why it does not work."""
        shapes = None
        if self.mode == "dynamic":
            axis = {0: torch.export.Dim.DYNAMIC}
            given = torch.utils._pytree.tree_map(lambda _: axis, (args, kwargs))
            shapes = (*given[0], *given[1].values())
        started = _clock()
        try:
            torch.onnx.export(
                model, args, path, kwargs=kwargs, dynamic_shapes=shapes, dynamo=True,
                opset_version=OPSET, verbose=False, external_data=True,
            )  # fmt: skip
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]
            return _sentence(error)
        self.took("plain", started)
        self.record.setdefault("nodes", {})["plain"] = _nodes(path)
        return None

    def convert(self, model: nn.Module, path: Path, args: Any, kwargs: Any) -> str | None:
        """passfx, and what its report says."""
        import passfx

        started = _clock()
        try:
            report = passfx.convert(
                model, path, args, kwargs, opset=OPSET, dynamic_batch=self.mode == "dynamic"
            )
        except passfx.PassfxError as error:
            self.record["raised"] = type(error).__name__
            return str(error)
        except Exception as error:
            self.record["raised"] = type(error).__name__
            self.record["traceback"] = traceback.format_exc()[-3000:]
            return f"traceback: {_sentence(error)}"
        self.took("passfx", started)
        self.record["stages"] = {key: round(value, 1) for key, value in report.seconds.items()}
        self.record["shortcuts"] = Counter(item.kind for item in report.shortcuts)
        self.record["operators"] = [report.before.nodes, report.after.nodes]
        self.record["macs"] = [report.before.macs, report.after.macs]
        left = report.after.ops
        self.record["norms"] = [report.before.ops.get("batch_norm", 0), left.get("batch_norm", 0)]
        self.record["rolled_back"] = [run.name for run in report.passes if run.rolled_back]
        refusals = [item for run in report.passes for item in run.refusals]
        self.record["undone"] = [item.reason for item in refusals if item.undone]
        self.record["why"] = sorted({item.reason for item in refusals if "norm" in item.at})[:5]
        self.record["norms_at"], self.record["file_norms"] = _norms(path)
        self.record["file_ops"] = dict(_ops(path))
        self.record.setdefault("nodes", {})["passfx"] = _nodes(path)
        self.record["notes"] = list(report.notes)
        return None

    def check(self, model: nn.Module, path: Path) -> str | None:
        """Run the file on fresh inputs, and the model in float64, or float32 where it must be."""
        session = _session(path)
        self.record["reference"], self.record["errors"] = "float64", {}
        drawn = [self.case.inputs(model, batch) for batch in BATCHES[self.mode]]
        results = [_run(session, args, kwargs) for args, kwargs in drawn]
        with torch.no_grad():
            singles = [flat(model(*args, **kwargs)) for args, kwargs in drawn]
            try:
                model.double()
                wanted = [
                    flat(model(*cast(args, torch.float64), **cast(kwargs, torch.float64)))
                    for args, kwargs in drawn
                ]
            except Exception:  # it computes in float32 whatever it is given
                self.record["reference"], wanted = "float32", singles
            model.float()
        for batch, result, single, exact in zip(
            BATCHES[self.mode], results, singles, wanted, strict=True
        ):
            if len(result) != len(exact):
                return f"wrong: {len(result)} outputs instead of {len(exact)}"
            off = [distance(*pair) for pair in zip(result, exact, strict=True)]
            own = [distance(*pair) for pair in zip(single, exact, strict=True)]
            self.record["errors"][str(batch)] = max(off, default=0.0)
            self.record["own_error"] = max(own, default=0.0)
            for number, (error, before) in enumerate(zip(off, own, strict=True)):
                if not error <= max(TOLERANCE, TIMES * before):
                    return (
                        f"wrong: output {number} at batch {batch} is {error:.1e} off, "
                        f"the float32 model {before:.1e}"
                    )
        self.record["constant"] = all(
            distance(first[:1], last[:1]) < CONSTANT for first, last in zip(*wanted, strict=True)
        )
        return None

    def judge_refusal(
        self, model: nn.Module, plain: Path, plain_error: str | None, args: Any, kwargs: Any,
        failure: str,
    ) -> None:  # fmt: skip
        """A refusal is a clear sentence where plain export gives no right file either."""
        if self.mode == "dynamic":
            self.stage("export plainly")
            plain_error = self.export_plainly(model, plain, args, kwargs)
        if plain_error is None:
            self.stage("check the plain file")
            try:
                plain_error = self.check(model, plain)
            except Exception as error:
                plain_error = _sentence(error)
            for name in ("errors", "own_error"):  # they are not those of passfx's file
                self.record.pop(name, None)
        self.record["plain"] = plain_error or "right"
        is_clear = not UNCLEAR.search(failure) and "\n" not in failure
        is_refusal = self.record["raised"] in ("CaptureError", "ExportError", "SourceError")
        if is_clear and is_refusal and plain_error is not None:
            self.record["outcome"] = "refused"

    def peers(self, plain: Path) -> None:
        """The nodes that others leave of the plain file."""
        for name, function in PEERS.items():
            self.stage(name)
            with suppress(Exception):
                self.record["nodes"][name] = function(plain)

    def runtime_warnings(self) -> int:
        """How often ONNX Runtime complained."""
        return (self.place / "stderr").read_text(errors="replace").count(":onnxruntime:")


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The outputs of a file; positional inputs by their order, the others by name."""
    names = [item.name for item in session.get_inputs()]
    leaves = flat(args)
    feeds = dict(zip((name for name in names if name not in kwargs), leaves, strict=False))
    feeds |= {name: item for name, item in kwargs.items() if name in names}
    found = session.run(None, {name: item.numpy() for name, item in feeds.items()})
    return [torch.from_numpy(item) for item in found]


def _sentence(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"[:400]


def _graph(path: Path) -> Any:
    import onnx

    return onnx.load(path, load_external_data=False).graph


def _ops(path: Path) -> Counter[str]:
    """The operators of a file; a Constant is none."""
    return Counter(node.op_type for node in _graph(path).node if node.op_type != "Constant")


def _nodes(path: Path) -> int:
    return sum(_ops(path).values())


def _norms(path: Path) -> tuple[dict[str, int], int]:
    """What stands before and after each norm of a file, and how many there are."""
    nodes = _graph(path).node
    maker = {name: node.op_type for node in nodes for name in node.output}
    found: Counter[str] = Counter()
    for node in nodes:
        if node.op_type in NORMS:
            users = sorted({item.op_type for item in nodes if node.output[0] in item.input})
            after = "/".join(users) or "output"
            found[f"{maker.get(node.input[0], 'input')} → {node.op_type} → {after}"] += 1
    return dict(found.most_common(4)), sum(found.values())


def _onnxsim(path: Path) -> int:
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(path))
    return sum(node.op_type != "Constant" for node in model.graph.node)


def _onnxslim(path: Path) -> int:
    import onnxslim

    model = onnxslim.slim(str(path))
    return sum(node.op_type != "Constant" for node in model.graph.node)


PEERS: dict[str, Callable[[Path], int]] = {"onnxslim": _onnxslim, "onnxsim": _onnxsim}
