"""The JSON reports that a change of the code's structure must not change.

    python -m tests.golden.reports [NAME ...]         # write tests/golden/NAME.json anew
    python -m tests.golden.reports --full DIR         # whole reports, roundings included, into DIR

Seconds are left out, and from the files kept here also what the machine's own roundings and paths
decide: errors, tolerances, the bytes of a file.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import passfx
import tests.conftest  # noqa: F401  torchvision's schemas, before anything imports torchvision
from models import pass_layer, reparam, resnet
from tests.helpers import randomize
from tests.models import ZOO, randomized

FOLDER = Path(__file__).parent
DIGITS = Path(__file__).parents[2] / "models" / "digits.py"
_MACHINE = ("error", "max_abs_error", "rel_error", "baseline_rel_error", "tolerance", "bytes")

Json = dict[str, Any]


def optimized(build: Callable[[], nn.Module], *shape: int, **options: Any) -> Json:
    """A model with random weights and norms, in memory."""
    torch.manual_seed(0)
    model = randomized(build())
    return passfx.optimize(model, (torch.randn(*shape),), **options).report.to_dict()


def converted(build: Callable[[], nn.Module], *shape: int, **options: Any) -> Json:
    """The same as a file."""
    torch.manual_seed(0)
    model = randomize(build())
    return passfx.convert(model, "model.onnx", (torch.randn(*shape),), **options).to_dict()


def digits(**options: Any) -> Json:
    """The trained network, from its file."""
    report = passfx.convert(f"{DIGITS}:digits_resnet", "digits.onnx", **options).to_dict()
    return {**report, "source": "digits.py:digits_resnet"}


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": partial(reparam.RepVGGBlock, 4, 4),
    "mobileone": partial(reparam.MobileOneBlock, 4, 4, 3, groups=4),
    "acblock": partial(reparam.ACBlock, 4, 6, 3, 1),
    "diverse": partial(reparam.DiverseBranchBlock, 4, 8, groups=4, stride=2),
    "edge": partial(reparam.EdgeBlock, 4, 4, identity=True),
    "alpha": partial(reparam.AlphaBlock, 4, 6),
    "qarepvgg": partial(reparam.QARepVGGBlock, 4, 4),
    "repmixer": partial(reparam.RepMixer, 4),
    "dilated": partial(reparam.DilatedBlock, 4),
}
REPORTS: dict[str, Callable[[], Json]] = {
    "digits": digits,
    "digits_dynamic": partial(digits, dynamic_batch=True),
    "digits_cuda": partial(digits, target="cuda"),
    "digits_fp16": partial(digits, target="cuda", precision="fp16"),
    "pass_cnn": partial(converted, pass_layer.PassCNN, 1, 3, 32, 32),
    "pass_cnn_add": partial(converted, pass_layer.PassCNNAdd, 1, 3, 32, 32),
    "pass_variants": partial(converted, pass_layer.PassVariants, 1, 8, 32, 32),
    "residual_block": partial(
        converted, lambda: pass_layer.ResidualBlock(3, 8), 1, 3, 32, 32, dynamic_batch=True
    ),
    **{f"resnet18_{name}": partial(optimized, partial(resnet.resnet18, name), 1, 3, 64, 64)
       for name in ("v1.5", "d", "preact")},
    **{f"block_{name}": partial(converted, build, 2, 4, 11, 14) for name, build in BLOCKS.items()},
    **{f"zoo_{name}": partial(optimized, build, 1, 3, 64, 64) for name, build in ZOO.items()},
}  # fmt: skip


def without(found: Any, names: tuple[str, ...]) -> Any:
    """JSON values without some of the keys, at any depth; a figure that was None stays."""
    if isinstance(found, dict):
        return {
            key: without(item, names)
            for key, item in found.items()
            if key not in names or item is None
        }
    return [without(item, names) for item in found] if isinstance(found, list | tuple) else found


def text(report: Json, *, full: bool = False) -> str:
    """A report as it is kept."""
    kept = without(report, ("seconds", *(() if full else _MACHINE)))
    return json.dumps(kept, indent=1) + "\n"


def make(name: str, *, full: bool = False) -> str:
    """The report of a model, by this code; files go to a folder of their own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return text(REPORTS[name](), full=full)


def main() -> None:
    """Write the reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(REPORTS))
    parser.add_argument("--full", type=Path, metavar="DIR")
    options = parser.parse_args()
    folder = os.path.abspath(options.full or FOLDER)
    for name in options.names:
        Path(folder, f"{name}.json").write_text(make(name, full=options.full is not None))
        print(name, flush=True)


if __name__ == "__main__":
    main()
