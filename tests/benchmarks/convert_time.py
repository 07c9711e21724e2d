"""What `passfx.convert` does to a model, and its wall time beside plain `torch.onnx.export`.

Both run in one process, in turns, after one uncounted round; medians and their ratio are printed,
with the operators of the graph before and after, the shortcuts and the parity of the file.

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

import torch

import passfx
from passfx.source.inputs import parse_argument
from passfx.source.load import load_source
from passfx.source.spec import Source, SourceSpec

BLOCK = "models/pass_layer.py:ResidualBlock"
SOURCES = (
    "models/digits.py:digits_resnet",
    "models/pass_layer.py:PassCNN 1x3x32x32",
    f"{BLOCK} 1x3x32x32 in_channels=3 out_channels=8",
    f"{BLOCK} 1x8x32x32 in_channels=8 out_channels=8",
    "torchvision:resnet18",
    "timm:resnet50d",
)


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


def load(text: str) -> Source:
    """A source, an input shape and factory arguments, separated by spaces."""
    name, *rest = text.split()
    return load_source(
        SourceSpec(
            name,
            arguments=dict(parse_argument(item) for item in rest if "=" in item),
            input_shapes=[item for item in rest if "=" not in item],
        )
    )


def main() -> None:
    """Print one row a source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=SOURCES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}")
    print("| model | operators | shortcuts | error / tolerated | export s | convert s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain.onnx", Path(folder) / "passfx.onnx"
        for text in options.sources:
            source = load(text)
            model, args = source.model.eval(), source.args
            times: list[tuple[float, float]] = []
            for _ in range(options.rounds + 1):
                export = seconds(lambda: plain_export(model, args, plain))  # noqa: B023
                times.append((export, seconds(lambda: passfx.convert(model, ours, args))))  # noqa: B023
            report = passfx.convert(model, ours, args)
            export, convert = (statistics.median(column) for column in zip(*times[1:], strict=True))
            kinds = Counter(item.kind for item in report.shortcuts)
            print(
                f"| {text} | {report.before.nodes} → {report.after.nodes} "
                f"| {kinds['identity']} identity, {kinds['projection']} projection "
                f"| {report.parity.rel_error:.1e} / {report.parity.tolerance:.1e} "
                f"| {export:.1f} | {convert:.1f} | {convert / export:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
