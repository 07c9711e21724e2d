"""What `passfx.convert` saves beside plain `torch.onnx.export`: size, operators, latency.

One row a model or block, with random weights and random norms. Multiply-accumulates, parameters
(statistics of norms too) and operators are those of the captured graph and of the rewritten one.
The latency is that of the two files under ONNX Runtime on the CPU: both sessions in one process,
run in turns after a few uncounted rounds; medians, and the ratio of before to after. A row that
fails says so in its place, and the exit code is 1.

    python tests/benchmarks/collapse_table.py [--only NAME ...] [--threads N] [--json FILE]
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import passfx
from models import reparam
from passfx.export.onnx import summarize
from passfx.report.console import format_count
from passfx.source.load import load_source
from passfx.source.spec import Source, SourceSpec
from tests.models import frozen_resnet50, randomized
from tests.schemas import define_torchvision_schemas

OPSET = 20
WARM_UP = 3
MIN_ROUNDS = 5  # even where the time is up
CHANNELS = 64

Build = Callable[[], Source]


def zoo(text: str, *shapes: str) -> Build:
    """A model of timm or torchvision, at the size that it declares unless another is given."""
    return lambda: load_source(SourceSpec(text, input_shapes=shapes))


def block(build: Callable[[], nn.Module]) -> Build:
    """A block on 64 channels of 56x56."""
    return lambda: Source("block", build(), (torch.randn(1, CHANNELS, 56, 56),))


def imagenet(build: Callable[[int], nn.Module]) -> Build:
    """A model with a thousand classes on 224x224."""
    return lambda: Source("model", build(1000), (torch.randn(1, 3, 224, 224),))


BOTH = CHANNELS, CHANNELS

ROWS: dict[str, Build] = {
    "RepVGG block": block(lambda: reparam.RepVGGBlock(*BOTH)),
    "MobileOne block": block(lambda: reparam.MobileOneBlock(*BOTH, 3, groups=CHANNELS)),
    "RepMixer": block(lambda: reparam.RepMixer(CHANNELS)),
    "QARepVGG-V2": block(lambda: reparam.QARepVGGBlock(*BOTH)),
    "PP-YOLOE alpha block": block(lambda: reparam.AlphaBlock(*BOTH)),
    "ACBlock (3, 1)": block(lambda: reparam.ACBlock(*BOTH, 3, 1)),
    "DBB": block(lambda: reparam.DiverseBranchBlock(*BOTH)),
    "DBB (stride 2, groups 4)": block(
        lambda: reparam.DiverseBranchBlock(*BOTH, stride=2, groups=4)
    ),
    "ECB": block(lambda: reparam.EdgeBlock(*BOTH)),
    "UniRepLK 13x13": block(lambda: reparam.DilatedBlock(CHANNELS)),
    "repvgg_a0": zoo("timm:repvgg_a0"),
    "repvgg_b1g4": zoo("timm:repvgg_b1g4"),
    "mobileone_s0": zoo("timm:mobileone_s0"),
    "fastvit_t8": zoo("timm:fastvit_t8"),
    "repvit_m0_9": zoo("timm:repvit_m0_9"),
    "repghostnet_050": zoo("timm:repghostnet_050"),
    "ghostnetv3_100": zoo("timm:ghostnetv3_100"),
    "efficientvit_m0": zoo("timm:efficientvit_m0"),
    "levit_128s": zoo("timm:levit_128s"),
    "resnet50d": zoo("timm:resnet50d"),
    "resnet50d, 225x225": zoo("timm:resnet50d", "1x3x225x225"),
    "densenet121": zoo("timm:densenet121"),
    "inception_v3": zoo("timm:inception_v3"),
    "nfnet_l0": zoo("timm:nfnet_l0"),
    "resnetv2_50x1_bit": zoo("timm:resnetv2_50x1_bit"),
    "mobilenet_v2 (torchvision)": zoo("torchvision:mobilenet_v2"),
    "resnet50, FrozenBatchNorm2d (torchvision)": imagenet(frozen_resnet50),
}


@dataclass(frozen=True)
class Row:
    """Each pair is before and after; `onnx_nodes` and `ms` are those of the files."""

    name: str
    macs: tuple[int, int]
    params: tuple[int, int]
    operators: tuple[int, int]
    onnx_nodes: tuple[int, int]
    ms: tuple[float, float]
    rounds: int
    rel_error: float
    tolerance: float
    rolled_back: tuple[str, ...]

    def markdown(self) -> str:
        """The row of the table."""
        before, after = self.ms
        cells = (
            self.name,
            " → ".join(map(format_count, self.macs)),
            " → ".join(map(format_count, self.params)),
            " → ".join(map(str, self.operators)),
            f"{before:.2f} → {after:.2f}",
            f"{before / after:.2f}",
            f"{self.rel_error:.1e} / {self.tolerance:.1e}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = """\
| model or block | MACs | parameters | operators | latency, ms | ratio | error / tolerated |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure(name: str, folder: Path, options: argparse.Namespace) -> Row:
    """Convert one model, export it plainly, and run both files."""
    torch.manual_seed(0)
    source = ROWS[name]()
    assert isinstance(source.model, nn.Module)
    model = randomized(source.model).eval()
    plain, ours = folder / "plain.onnx", folder / "passfx.onnx"
    report = passfx.convert(model, ours, source.args, opset=OPSET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            source.args,
            plain,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            external_data=False,
        )
    times = latencies((plain, ours), source.args, options)
    befores, afters = zip(*times, strict=True)
    before, after = report.before, report.after
    assert report.parity is not None
    return Row(
        name,
        (before.macs, after.macs),
        (before.params, after.params),
        (before.nodes, after.nodes),
        (summarize(plain).nodes, summarize(ours).nodes),
        (statistics.median(befores), statistics.median(afters)),
        len(times),
        report.parity.rel_error,
        report.parity.tolerance,
        tuple(run.name for run in report.passes if run.rolled_back),
    )


def latencies(
    paths: tuple[Path, Path], args: tuple[Any, ...], options: argparse.Namespace
) -> list[tuple[float, float]]:
    """The milliseconds of both files, in turns, for so many rounds or seconds."""
    first, second = (runner(path, args, options.threads) for path in paths)
    for _ in range(WARM_UP):
        first()
        second()
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + options.seconds
    while len(times) < MIN_ROUNDS or (len(times) < options.rounds and time.perf_counter() < end):
        times.append((milliseconds(first), milliseconds(second)))
    return times


def runner(path: Path, args: tuple[Any, ...], threads: int) -> Callable[[], object]:
    """A session on a file, and its inputs, to be called."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Idle threads that spin would take the cores from the other session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    feeds = dict(zip(names, (item.numpy() for item in args), strict=True))
    return lambda: session.run(None, feeds)


def milliseconds(function: Callable[[], object]) -> float:
    """The wall time of one call."""
    started = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Print the table, each row as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, help="of each session")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=6, help="a row, if rounds take longer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    define_torchvision_schemas()
    torch.set_num_threads(1)  # of PyTorch; those of the sessions are an option
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}", end=", ")
    print(f"{options.threads} threads\n\n{HEAD}", flush=True)
    results: list[dict[str, Any]] = []
    for name in options.only:
        try:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(name, Path(folder), options)
            results.append(asdict(row))
            print(row.markdown(), flush=True)
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}".partition("\n")[0].replace("|", "\\|")
            results.append({"name": name, "error": sentence})
            print(f"| {name} | {sentence} | | | | | |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n")
        gc.collect()
    sys.exit(1 if any("error" in result for result in results) else 0)


if __name__ == "__main__":
    main()
