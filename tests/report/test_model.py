"""The report as JSON values."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from passfx.cli.options import Output
from passfx.errors import ExportError
from passfx.files import write_text
from passfx.report.model import Report
from passfx.verify.parity import Parity
from passfx.version import __version__


@pytest.fixture
def report() -> Report:
    from passfx.analysis.cost import GraphCost

    cost = GraphCost(1, {"relu": 1}, 0, 0, 0)
    seconds = {"total": 0.5}
    return Report(
        "net",
        "cpu",
        "fp32",
        (),
        (),
        cost,
        replace(cost, nodes=2),
        (),
        seconds,
    )


def test_keys_and_their_order(report: Report) -> None:
    fields = report.to_dict()
    assert list(fields) == [
        *("passfx", "source", "target", "precision", "opset", "inputs", "outputs", "notes"),
        *("graph", "shortcuts", "passes", "parity", "onnx", "seconds", "rules"),
    ]
    assert fields["passfx"] == __version__
    assert list(fields["graph"]) == ["before", "after"]
    assert [fields["graph"][when]["nodes"] for when in ("before", "after")] == [1, 2]


def test_to_dict_gives_away_nothing_of_the_report(report: Report) -> None:
    report.to_dict()["graph"]["before"]["ops"]["relu"] = 7
    report.to_dict()["seconds"]["total"] = 7
    assert report.before.ops == {"relu": 1}
    assert report.seconds == {"total": 0.5}


def test_numbers_that_json_does_not_know(report: Report, tmp_path: Path) -> None:
    parity = Parity("torch", 1, inf, nan, -inf, 1.0, False)
    Output(str(tmp_path / "r.json"), None, quiet=True).write(replace(report, parity=parity))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)["parity"]
    assert [written[key] for key in ("max_abs_error", "rel_error", "baseline_rel_error")] == [
        *("inf", "nan", "-inf")
    ]


def test_failed_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "r.json"
    path.write_text("old")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ExportError, match=r"r\.json cannot be written: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
