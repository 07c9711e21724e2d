"""Wall time of `passfx.convert` beside plain `torch.onnx.export(dynamo=True)` of the same model.

Both run in one process, in turns, after one uncounted round; medians and their ratio are printed,
and the operators of both files.

    python tests/benchmarks/convert_time.py [SOURCE ...] [--rounds N]
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from rich.console import Console
from rich.table import Table

import passfx
from passfx.source import load_source

SOURCES = ("models/digits.py:digits_resnet", "torchvision:resnet18", "timm:resnet50d")


def plain_export(model: torch.nn.Module, args: tuple[object, ...], path: Path) -> None:
    """What a user does without passfx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, args, path, dynamo=True, verbose=False, external_data=False)


def seconds(function: Callable[[], object]) -> float:
    """The wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def operators(path: Path) -> str:
    """The operators of a file, most frequent first."""
    counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(4))


def main() -> None:
    """Print one row a source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=SOURCES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table("model", "torch.onnx.export s", "passfx.convert s", "ratio", "operators")
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain.onnx", Path(folder) / "passfx.onnx"
        for name in options.sources:
            source = load_source(name)
            model, args = source.model.eval(), source.args
            times: tuple[list[float], list[float]] = ([], [])
            for round_number in range(options.rounds + 1):
                pair = (
                    seconds(lambda: plain_export(model, args, plain)),  # noqa: B023
                    seconds(lambda: passfx.convert(model, ours, args)),  # noqa: B023
                )
                if round_number:
                    for kept, measured in zip(times, pair, strict=True):
                        kept.append(measured)
            export, convert = map(statistics.median, times)
            both = f"{operators(plain)} → {operators(ours)}"
            table.add_row(
                name, f"{export:.2f}", f"{convert:.2f}", f"{convert / export:.2f}", both
            )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
