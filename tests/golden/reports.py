"""The JSON reports that a change of the code's structure must not change.

    python -m tests.golden.reports [NAME ...]         # write tests/golden/NAME.json anew
    python -m tests.golden.reports --full DIR         # whole reports, roundings included, into DIR

Seconds are left out, and from the files kept here also what the machine's own roundings and paths
decide: errors, tolerances, the bytes of a file. The file TORCH names the release of torch whose
names of nodes they have; under another one the names are not compared, and everything else is.
"""

import argparse
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from difflib import unified_diff
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import passfx
from models import pass_layer, resnet
from passfx.jobs.optimize import Optimized
from tests.models import BLOCKS, ZOO, randomize, randomized
from tests.schemas import define_torchvision_schemas

FOLDER = Path(__file__).parent
DIGITS = Path(__file__).parents[2] / "models" / "digits.py"
_MACHINE = (
    *("error", "max_abs_error", "rel_error", "baseline_rel_error", "tolerance", "bytes"),
    "notes",  # they name files
)

Json = dict[str, Any]


def optimize(build: Callable[[], nn.Module], *shape: int) -> Optimized:
    """A model with random weights and norms, in memory."""
    torch.manual_seed(0)
    model = randomized(build())
    return passfx.optimize(model, (torch.randn(*shape),))


def optimize_zoo(name: str) -> Optimized:
    """One of the models that many people use, for one small image."""
    return optimize(ZOO[name], 1, 3, 64, 64)


def optimized(build: Callable[[], nn.Module], *shape: int) -> Json:
    """The report of a model in memory."""
    return optimize(build, *shape).report.to_dict()


def converted(build: Callable[[], nn.Module], *shape: int, **options: Any) -> Json:
    """The report of a model as a file."""
    torch.manual_seed(0)
    model = randomize(build())
    return passfx.convert(model, "model.onnx", (torch.randn(*shape),), **options).to_dict()


def digits(**options: Any) -> Json:
    """The trained network, from its file."""
    report = passfx.convert(f"{DIGITS}:digits_resnet", "digits.onnx", **options).to_dict()
    return {**report, "source": "digits.py:digits_resnet"}


_BLOCKS = {
    "repvgg": "repvgg",
    "mobileone": "mobileone_depthwise",
    "acblock": "acblock_3_1",
    "diverse": "diverse_groups_stride",
    "edge": "edge_identity",
    "alpha": "alpha",
    "qarepvgg": "qarepvgg",
    "repmixer": "repmixer",
    "dilated": "dilated",
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
    **{f"block_{name}": partial(converted, BLOCKS[block], 2, 4, 11, 14)
       for name, block in _BLOCKS.items()},
}  # fmt: skip
ZOO_REPORTS = {f"zoo_{name}": lambda name=name: optimize_zoo(name).report.to_dict() for name in ZOO}


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
        return text({**REPORTS, **ZOO_REPORTS}[name](), full=full)


def nameless(report: Json) -> Json:
    """A report without the names of nodes, which vary between releases of torch.

    How many there are stays, and the sentences stay without the numbers at the ends of names.
    """
    shortcuts = [
        {
            **item,
            **dict.fromkeys(("fork", "merge")),
            **{key: len(item[key]) for key in ("path", "body")},
        }
        for item in report["shortcuts"]
    ]
    passes = [
        {
            **entry,
            "rewrites": [
                {
                    **item,
                    "at": None,
                    "what": _unnumbered(item["what"]),
                    **{key: len(item[key]) for key in ("removed", "added")},
                }
                for item in entry["rewrites"]
            ],
            "refusals": [
                {**item, "at": None, "reason": _unnumbered(item["reason"])}
                for item in entry["refusals"]
            ],
        }
        for entry in report["passes"]
    ]
    return {**report, "shortcuts": shortcuts, "passes": passes}


def _unnumbered(sentence: str) -> str:
    return re.sub(r"\b([a-z]\w*?)(_\d+)+\b", r"\1", sentence)


def release() -> str:
    """The release of torch that runs."""
    return ".".join(torch.__version__.split(".")[:2])


def recorded_release() -> str:
    """The release of torch that the files were made with."""
    return (FOLDER / "TORCH").read_text().strip()


def differences(name: str, found: str) -> str:
    """How the report of today's code differs from the file; empty where it does not."""
    kept, today = json.loads((FOLDER / f"{name}.json").read_text()), json.loads(found)
    if release() != recorded_release():
        kept, today = nameless(kept), nameless(today)
    lines = (text(item, full=True).splitlines() for item in (kept, today))
    return "\n".join(unified_diff(*lines, f"{name}.json", "today's code", n=8, lineterm=""))


def main() -> None:
    """Write the reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--full", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.names and not options.full and release() != recorded_release():
        parser.error(f"the other files are of torch {recorded_release()}: write all of them")
    torch.set_num_threads(1)
    define_torchvision_schemas()
    folder = os.path.abspath(options.full or FOLDER)
    for name in options.names or (*REPORTS, *ZOO_REPORTS):
        Path(folder, f"{name}.json").write_text(make(name, full=options.full is not None))
        print(name, flush=True)
    if not options.full:
        Path(folder, "TORCH").write_text(f"{release()}\n")


if __name__ == "__main__":
    main()
