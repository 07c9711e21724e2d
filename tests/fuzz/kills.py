"""Kill conversions at many moments, and look at what they left: `python -m tests.fuzz.kills`.

A process that was forked after torch was imported writes a file whose weights lie beside it over
another one, and SIGKILL strikes: before each of the calls that make, move or delete something in
the folder, and at moments spread over a whole conversion. Then the file must be the old one whole
or the new one whole, with its own data; and after the next run nothing else may be in the folder.
"""

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from passfx.export import onnx as export
from passfx.export.onnx import export_onnx, external_files, staged
from passfx.jobs.optimize import Optimized, optimize

INLINE_BYTES = 1000  # so that the weights of a small model lie beside it
_WIDTH = 200


class Constant(nn.Module):
    """All weights are one value, so that a file mixed from two models gives itself away."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 1, bias=False)
        for item in self.parameters():
            nn.init.constant_(item, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@dataclass(frozen=True)
class Job:
    """A model, and the same as ONNX in memory."""

    value: float
    optimized: Optimized
    model: ir.Model

    @classmethod
    def of(cls, value: float) -> "Job":
        found = optimize(Constant(value).eval(), (torch.ones(1, _WIDTH),))
        return cls(value, found, export_onnx(found.module, found.captured))

    def convert(self, path: Path) -> None:
        self.optimized.export(path)

    def write(self, path: Path) -> None:
        """The end of a conversion."""
        with staged(self.model, path) as (written, _):
            assert result(written) == self.expected

    @property
    def expected(self) -> float:
        return _WIDTH * self.value * (_WIDTH * self.value + self.value)


def result(path: Path) -> float:
    """What a file gives for ones; it must be valid, with the data that it names."""
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (item.name for item in session.get_inputs())
    return float(session.run(None, {name: torch.ones(1, _WIDTH).numpy()})[0].item())


def moments(count: int, seconds: float, calls: int) -> Iterator[float | int]:
    """When to strike: a time of a whole conversion, one in five, or the number of a call."""
    timed = (count + 4) // 5
    yield from (seconds * (index + 0.5) / timed for index in range(timed))
    yield from (round(index * calls / max(1, count - timed - 1)) for index in range(count - timed))


def run(work: Callable[[], None], moment: float | int | None) -> int:
    """Fork, work, and die at a moment; the number of calls so far, -1 where it was killed."""
    child = os.fork()
    if not child:
        try:
            calls = _strike_at(moment if isinstance(moment, int) else None)
            work()
        except BaseException:
            os._exit(255)
        os._exit(calls[0])
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) < 255, "the conversion failed"
    return -1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _strike_at(number: int | None) -> list[int]:
    """Count the calls that change a folder, and die before the one of this number."""
    calls = [0]
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "open"):
        _count(name, calls, number)
    return calls


def _count(name: str, calls: list[int], number: int | None) -> None:
    call = getattr(os, name)

    def counted(*args: Any, **options: Any) -> Any:
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        return call(*args, **options)

    setattr(os, name, counted)


def check(count: int, folder: Path) -> Counter[str]:
    """Kill `count` conversions; what was found of the file after each.

    Raises:
        AssertionError: a file is neither the old nor the new one, or something is left over.
    """
    path, old, new = folder / "model.onnx", Job.of(1.0), Job.of(2.0)
    start = time.monotonic()
    run(lambda: old.convert(path), None)
    seconds = time.monotonic() - start
    calls = run(lambda: new.write(path), None)
    run(lambda: old.write(path), None)
    found: Counter[str] = Counter()
    for moment in moments(count, seconds, calls):
        work = new.convert if isinstance(moment, float) else new.write
        killed = run(partial(work, path), moment)
        value = result(path)
        assert value in (old.expected, new.expected), f"{value} after a kill at {moment}"
        found["killed" if killed < 0 else "finished before"] += 1
        found["old file" if value == old.expected else "new file"] += 1
        found["with leftovers"] += len(list(folder.iterdir())) > 2
        run(partial(old.write, path), None)
        assert result(path) == old.expected
        left = sorted(item.name for item in folder.iterdir())
        assert left == sorted([path.name, *(item.name for item in external_files(path))]), left
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=50)
    count = options.parse_args().count
    export._INLINE_BYTES = INLINE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        found = check(count, Path(folder))
    print(f"{count} kills, no partial file, no leftovers after the next run; ", end="")
    print(", ".join(f"{what} {times}" for what, times in found.items()))


if __name__ == "__main__":
    main()
