"""Every figure that a GPU is asked for, in one run: nine models, two batch sizes, two precisions.

For each model and batch size, the race of `passfx bench`: PyTorch, torch.compile, a plain export
under the default session, passfx and passfx tuned, in fp32 and in fp16, with parity beside each
speed. At the end the geometric means over the models. The tables are written as they grow, so that
a run that is stopped keeps what it has. It needs no network: weights are random, norms randomised.

    python tests/benchmarks/gpu_table.py --out DIR [--provider cuda] [--only NAME ...]
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from passfx.errors import PassfxError
from passfx.jobs.bench import PLAIN, BenchSettings, bench
from passfx.report.bench import BenchRow
from passfx.report.console import bench_cells
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from tests.models import DEPLOYED, randomize
from tests.schemas import define_torchvision_schemas

HEAD = """\
| model | precision | batch | | p50 ms | p90 | p99 | samples/s | speed-up | of roofline | error |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def load(name: str) -> SourceSpec:
    """A model with random weights and norms."""
    torch.manual_seed(0)
    source = load_source(SourceSpec(name))
    assert isinstance(source.model, nn.Module)
    randomize(source.model)
    return SourceSpec(source.model, source.args)


def line(name: str, precision: str, row: BenchRow) -> str:
    """A row of the table."""
    cells = [f"failed: {row.failed}"] if row.failed else bench_cells(row)
    return f"| {name.removeprefix('timm:')} | {precision} | {row.batch} | {row.name} | " + (
        " | ".join(cells) + " |"
    )


def means(rows: list[tuple[str, str, BenchRow]]) -> list[str]:
    """The geometric mean and the least speed-up of each contestant, by precision and batch."""
    lines = ["| | precision | batch | geometric mean | least | models |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    groups: dict[tuple[str, str, int], list[float]] = {}
    for _, precision, row in rows:
        if row.speedup is not None and row.name != PLAIN:
            groups.setdefault((row.name, precision, row.batch), []).append(row.speedup)
    for (name, precision, batch), found in groups.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        lines.append(
            f"| {name} | {precision} | {batch} | {mean:.2f} | {min(found):.2f} | {len(found)} |"
        )
    return lines


def main() -> None:
    """Race, and write the tables after each race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=DEPLOYED, default=DEPLOYED, metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--seconds", type=float, default=4, help="of each race")
    parser.add_argument("--tune-budget", type=float, default=8, help="seconds before each race")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--limit", type=float, default=540, help="start nothing new after, seconds")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    define_torchvision_schemas()
    torch.set_num_threads(os.cpu_count() or 1)  # PyTorch itself leaves hyper-threads out
    started, rows, heading = time.monotonic(), [], ""
    for name in options.only:
        spec = load(name)
        for precision in options.precision:
            for batch in options.batch:
                if time.monotonic() - started > options.limit:
                    print(f"stopped before {name} {precision} batch {batch}: the time is up")
                    sys.exit(1)
                try:
                    settings = BenchSettings(
                        options.provider,
                        [batch],
                        precision=precision,
                        seconds=options.seconds,
                        tune_budget=options.tune_budget,
                        compile=not options.no_compile and precision == "fp32",
                    )
                    report = bench(spec, [], settings)
                except PassfxError as error:
                    rows.append((name, precision, BenchRow("passfx", batch, failed=str(error))))
                else:
                    versions = ", ".join(f"{key} {value}" for key, value in report.versions.items())
                    heading = (
                        f"{datetime.now(UTC):%Y-%m-%d}, {report.device}, {options.provider}, "
                        f"{versions}, Python {platform.python_version()}"
                    )
                    rows += [(name, precision, row) for row in report.rows]
                table = [line(*row) for row in rows]
                text = "\n".join([heading, "", *means(rows), "", HEAD, *table]) + "\n"
                (options.out / "gpu_table.md").write_text(text)
                found = [{"model": m, "precision": p, **asdict(row)} for m, p, row in rows]
                (options.out / "gpu_table.json").write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name} {precision} {batch}: {time.monotonic() - started:.0f} s", flush=True)
                gc.collect()
    print(text)


if __name__ == "__main__":
    main()
