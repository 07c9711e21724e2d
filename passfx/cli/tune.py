"""`passfx tune`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from passfx.cli.command import ABOVE_ZERO, Group, command, option
from passfx.cli.options import MODEL, RUNTIME, SEED, output
from passfx.cli.output import Output
from passfx.files import check_apart

if TYPE_CHECKING:
    from passfx.runtime.tune import TuneSettings

_SETTINGS = Group("passfx.runtime.tune:TuneSettings", (
    *RUNTIME,
    option("--budget", type=ABOVE_ZERO, default=60, metavar="SECONDS",
        help="Of measuring; opening and warming up sessions come on top."),
    option("--allow-fp16", is_flag=True,
        help="Try half precision too, where the provider has kernels for it (cuda)."),
    option("--rtol", type=click.FloatRange(min=0), help="Relative error tolerated, from the file "
        "on the CPU.  [default: 1e-4; TF32, fp16 1e-2]"),
    SEED,
))  # fmt: skip


@command(model=MODEL, settings=_SETTINGS, out=output("what was measured", alone=False))
def tune(model: Path, settings: "TuneSettings", out: Output) -> None:
    """Find the fastest way to run MODEL.onnx on this machine.

    Measures combinations of ONNX Runtime's options and variants of the file in turns, refuses those
    whose results are off, and writes the best to MODEL.passfx.json beside the file, which
    passfx.runtime.load, `passfx bench` and `passfx deploy` read. A variant that wins is written
    as MODEL.tuned.onnx.
    """
    from dataclasses import asdict

    from passfx.report.console import print_tuning
    from passfx.runtime.sidecar import sidecar_path
    from passfx.runtime.tune import tune as search
    from passfx.runtime.tune import tuned_path

    sidecar = sidecar_path(model)
    others = {"the sidecar": sidecar, "the tuned file": tuned_path(model)}
    check_apart({"--json": out.json_path}, others)
    with out.progress() as progress:
        tuned = search(model, settings, progress)
    out.write_json(asdict(tuned.sidecar))
    written = dict.fromkeys([sidecar, tuned.sidecar.model_path])
    print_tuning(out.console, tuned, [path for path in written if path != model])
