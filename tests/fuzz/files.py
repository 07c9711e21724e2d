"""Mutate files, and read them: `python -m tests.fuzz.files --count 10000`.

A seed of each kind is made once: a program, a model with weights inside and one with weights
beside it, weights, a checkpoint, calibration samples, a sidecar. Each mutant goes through the
function of passfx that reads such a file. Success is fine (a flipped bit of a weight is a weight),
and so is a `PassfxError` of one line; any other exception is a finding, and so is a crash of native
code, which happens in a forked process.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from passfx.capture.program import Captured, capture
from passfx.errors import PassfxError
from passfx.export.calibration import calibration_samples
from passfx.export.onnx import export_onnx, external_files, staged, summarize
from passfx.runtime.options import Options
from passfx.runtime.session import Session
from passfx.runtime.sidecar import Sidecar, read_sidecar, sidecar_path, sidecar_text
from passfx.source.program import load_program
from passfx.source.weights import load_weights

_CHUNK = 50  # mutants that one process reads
_SECONDS = 120  # that it may take
KINDS = (".pt2", ".onnx", "external.onnx", ".safetensors", ".pth", ".ckpt", ".npz", ".json")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return torch.cat([y, torch.sigmoid(y)], 1)


@dataclass(frozen=True)
class Seeds:
    """A file of each kind in a folder, and what reads it."""

    folder: Path
    captured: Captured

    @classmethod
    def make(cls, folder: Path) -> "Seeds":
        x = torch.randn(2, 3, 6, 6)
        dims = {0: torch.export.Dim("batch", max=9)}
        program = torch.export.export(Net().eval(), (x,), dynamic_shapes=(dims,))
        torch.export.save(program, folder / "seed.pt2")
        captured = capture(Net().eval(), (x,))
        with staged(export_onnx(captured.graph_module, captured), folder / "seed.onnx"):
            pass
        onnx.save(
            onnx.load(folder / "seed.onnx"),
            *(folder / "external.onnx", "protobuf"),
            **{"save_as_external_data": True, "location": "external.data", "size_threshold": 0},
        )
        save_file(Net().state_dict(), folder / "seed.safetensors")
        torch.save(Net().state_dict(), folder / "seed.pth")
        checkpoint = {
            "args": argparse.Namespace(out=folder), "metric": np.float64(0.5),
            "model": {f"module.{name}": item for name, item in Net().state_dict().items()},
            "ema": {"state_dict": Net().state_dict(), "updates": 3},
        }  # fmt: skip
        torch.save(checkpoint, folder / "seed.ckpt")
        np.savez(folder / "seed.npz", x=np.ones((4, 3, 6, 6), np.float32))
        row = {"axis": "threads", "candidate": "as given", "batch": 2, "milliseconds": 1.5}
        options = Options(threads=2, layout=False)
        sidecar = Sidecar(folder / "seed.onnx", options, (1, 2), "a processor", 1.5, (row,))
        text = sidecar_text(folder / "seed.onnx", sidecar, {"torch": "2"})
        (folder / "seed.json").write_text(text)
        return cls(folder, captured)

    def seed(self, kind: str) -> bytes:
        return (self.folder / (kind if kind[0] != "." else f"seed{kind}")).read_bytes()

    def read(self, kind: str, mutant: bytes) -> None:
        """Read a mutant as passfx would."""
        if kind == ".json":
            sidecar_path(self.folder / "seed.onnx").write_bytes(mutant)
            read_sidecar(self.folder / "seed.onnx")
            return
        path = self.folder / f"mutant{Path(kind).suffix or kind}"
        path.write_bytes(mutant)
        if kind == ".pt2":
            load_program(str(path), {})
        elif kind == ".npz":
            calibration_samples(self.captured, ["x"], path)
        elif kind.endswith("onnx"):
            summarize(path)
            external_files(path)
            Session(path)
        else:
            load_weights(Net(), path)


# Mutations of bytes.


def _flip(random: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8, 64])):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(random: random.Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _insert(random: random.Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + random.randbytes(random.choice([1, 4, 100])) + data[at:]


def _block(random: random.Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(len(data), start + random.choice([1, 4, 16, 256]))


def _duplicate(random: random.Random, data: bytes) -> bytes:
    start, end = _block(random, data)
    return data[:end] + data[start:end] + data[end:]


def _fill(random: random.Random, data: bytes) -> bytes:
    start, end = _block(random, data)
    return data[:start] + random.choice([b"\0", b"\xff", b"9"]) * (end - start) + data[end:]


def _swap(random: random.Random, data: bytes) -> bytes:
    cuts = sorted(random.randrange(len(data)) for _ in range(3))
    return data[: cuts[0]] + data[cuts[1] : cuts[2]] + data[cuts[0] : cuts[1]] + data[cuts[2] :]


_BYTES = (_flip, _flip, _truncate, _insert, _duplicate, _fill, _swap)


def of_bytes(random: random.Random, data: bytes) -> bytes:
    return random.choice(_BYTES)(random, data or b"\0")


# Mutations of what a format holds.

_VALUES = (None, True, -1, 0, 2**40, -(2**70), 0.5, float("nan"), -1e400, "", "x", "../x", "/x",
           "a" * 300, "\0", "\ud800", [], {}, [[[]]], {"as_int": -1}, "9" * 400)  # fmt: skip


def of_json(random: random.Random, data: bytes) -> bytes:
    """A value anywhere in it becomes another, goes, or moves."""
    found = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, inner in pairs:
            places.append((item, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(found)
    for _ in range(random.choice([1, 1, 2])):
        holder, key = random.choice(places)
        change = random.choice(["value", "value", "value", "delete", "swap", "nest"])
        if change == "delete" and isinstance(holder, dict):
            holder.pop(key, None)
        elif change == "swap":
            other, other_key = random.choice(places)
            with_key = (isinstance(other, list) and other_key < len(other)) or (
                isinstance(other, dict) and other_key in other
            )  # fmt: skip
            holder[key] = json.loads(json.dumps(other[other_key])) if with_key else None
        elif change == "nest":
            holder[key] = [holder.get(key) if isinstance(holder, dict) else holder[key]]
        else:
            holder[key] = random.choice(_VALUES)
    return json.dumps(found).encode()


def of_zip(random: random.Random, data: bytes) -> bytes:
    """A member is mutated, renamed, doubled, emptied or left out, and its checksum is right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as changed:
        names = archive.namelist()
        chosen = random.choice(names)
        change = random.choice(["bytes", "bytes", "json", "json", "rename", "double", "drop"])
        for name in names:
            member = archive.read(name)
            if name != chosen or (change == "json" and not name.endswith(".json")):
                changed.writestr(name, member)
            elif change == "bytes":
                changed.writestr(name, of_bytes(random, member))
            elif change == "json":
                changed.writestr(name, of_json(random, member))
            elif change == "rename":
                changed.writestr(random.choice([*names, "x", "../x", "/x", "é"]), member)
            elif change == "double":
                changed.writestr(name, member)
                changed.writestr(name, of_bytes(random, member))
    return written.getvalue()


def of_proto(random: random.Random, data: bytes) -> bytes:
    """A field anywhere in a model becomes another value, is cleared, or is repeated."""
    model = onnx.ModelProto.FromString(data)
    messages: list[Any] = [model]
    for message in messages:
        for described, value in message.ListFields():
            if described.message_type is not None:
                is_many = hasattr(value, "extend")
                messages.extend(value if is_many else [value])
    for _ in range(random.choice([1, 1, 2, 4])):
        message = random.choice(messages)
        fields = message.ListFields()
        if not fields:
            continue
        described, value = random.choice(fields)
        is_many = hasattr(value, "extend")
        if described.message_type is None and random.random() < 0.7:
            new = _of_type(random, value[0] if is_many else value)
            with contextlib.suppress(ValueError):  # an enumeration that does not have it
                if is_many:
                    value[random.randrange(len(value))] = new
                else:
                    setattr(message, described.name, new)
        elif is_many and random.random() < 0.5:
            value.extend(list(value))
        else:
            message.ClearField(described.name)
    return bytes(model.SerializeToString())


def _of_type(random: random.Random, value: Any) -> Any:
    if isinstance(value, bytes):
        return random.choice([of_bytes(random, value), b"", b"\xff\xfe", value * 2])
    if isinstance(value, str):
        return random.choice(["", "x", "../x", "/x", "Conv", "Relu", "a" * 300, value + "é"])
    if isinstance(value, float):
        return random.choice([0.0, float("nan"), 1e30])
    return random.choice([0, 1, 2, 5, 11, 16, 100, 2**31 - 1])


_FORMATS: Mapping[str, Callable[[random.Random, bytes], bytes]] = {
    ".pt2": of_zip, ".pth": of_zip, ".ckpt": of_zip, ".npz": of_zip, ".json": of_json,
    ".onnx": of_proto, "external.onnx": of_proto, ".safetensors": of_bytes,
}  # fmt: skip


@dataclass
class Findings:
    """How many mutants of each kind were read, how they ended, and what should not have been."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    raw: list[str] = field(default_factory=list)


def mutant(seeds: Seeds, number: int) -> tuple[str, bytes]:
    """The mutant of a number: its kind and its bytes."""
    draw = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    mutate = _FORMATS[kind] if draw.random() < 0.6 else of_bytes
    return kind, mutate(draw, seeds.seed(kind))


def examine(seeds: Seeds, number: int) -> tuple[str, str]:
    """The kind of a mutant, and how its reading ended: "read", "refused", or the raw error."""
    kind, data = mutant(seeds, number)
    try:
        with warnings.catch_warnings(action="ignore"):
            seeds.read(kind, data)
    except PassfxError as error:
        return kind, "refused" if str(error).count("\n") == 0 else f"several lines: {error}"
    except BaseException as error:
        places = traceback.extract_tb(error.__traceback__)
        place = next(frame for frame in reversed(places) if "passfx/" in frame.filename)
        return kind, f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return kind, "read"


def run(count: int, folder: Path, start: int = 0) -> Findings:
    """Read `count` mutants in forked processes."""
    seeds, findings = Seeds.make(folder), Findings()
    for first in range(start, start + count, _CHUNK):
        numbers = list(range(first, min(first + _CHUNK, start + count)))
        while numbers:
            done = list(_forked(seeds, numbers))
            for number, (kind, ended) in zip(numbers, done, strict=False):
                is_raw = ended not in ("read", "refused")
                findings.counts[kind, "raw error" if is_raw else ended] += 1
                if is_raw:
                    findings.raw.append(f"mutant {number} ({kind}): {ended}")
            numbers = numbers[len(done) :]
            if numbers:
                kind = KINDS[numbers[0] % len(KINDS)]
                findings.counts[kind, "crash"] += 1
                findings.raw.append(f"mutant {numbers[0]} ({kind}): the process died or hung")
                numbers = numbers[1:]
    return findings


def _forked(seeds: Seeds, numbers: list[int]) -> Iterator[tuple[str, str]]:
    """What a process of its own found, as far as it came."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(_SECONDS)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        for number in numbers:
            os.write(writing, json.dumps(examine(seeds, number)).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        for line in lines:
            kind, ended = json.loads(line)
            yield kind, ended
    os.waitpid(child, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--start", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings = run(given.count, Path(folder), given.start)
    print(*findings.raw, sep="\n")
    for kind in KINDS:
        ended = {key[1]: times for key, times in findings.counts.items() if key[0] == kind}
        print(f"{kind:<14} " + ", ".join(f"{what} {times}" for what, times in ended.items()))
    print(f"{given.count} mutated files, {len(findings.raw)} raw errors")
    sys.exit(bool(findings.raw))


if __name__ == "__main__":
    main()
