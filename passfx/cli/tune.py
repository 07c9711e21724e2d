"""`passfx tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passfx.cli.command import Group, command
from passfx.cli.options import QUIET, RUNTIME
from passfx.cli.output import Output

if TYPE_CHECKING:
    from passfx.runtime.tune import TuneSettings


def _settings(**given: Any) -> "TuneSettings":
    from passfx.runtime.tune import TuneSettings

    return TuneSettings(**given)


_MODEL = click.Argument(["model"], type=click.Path(path_type=Path), metavar="MODEL.onnx")
_TUNE = Group(
    _settings,
    (
        *RUNTIME[:-1],
        click.Option(["--budget"], type=click.FloatRange(min=0, min_open=True), default=60,
            show_default=True, metavar="SECONDS",
            help="Of measuring; opening and warming up sessions come on top."),
        click.Option(["--allow-fp16"], is_flag=True,
            help="Try half precision too, where the provider has kernels for it (cuda)."),
        click.Option(["--rtol"], type=click.FloatRange(min=0),
            help="Relative error tolerated, from the file on the CPU.  [default: 1e-4; TF32, "
            "fp16 1e-2]"),
        RUNTIME[-1],
    ),
)  # fmt: skip
_JSON = click.Option(["--json", "json_path"], metavar="FILE|-",
    help="Write what was measured as JSON.")  # fmt: skip


@command(_MODEL, settings=_TUNE, out=Group(Output, (_JSON, QUIET)))
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

    with out.progress() as progress:
        tuned = search(model, settings, progress)
    out.write_json(asdict(tuned.sidecar))
    written = dict.fromkeys([sidecar_path(model), tuned.sidecar.model_path])
    print_tuning(out.console, tuned, [path for path in written if path != model])
