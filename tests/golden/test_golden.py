"""The reports of today's code are those that are kept, text for text; tests/zoo has the rest."""

import json
from typing import Any

import pytest

import passfx
from tests.golden import reports

KEPT = sorted(path.stem for path in reports.FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", reports.REPORTS)
def test_a_report_is_the_one_that_is_kept(name: str) -> None:
    found = reports.differences(name, reports.make(name))
    assert not found, found


def test_every_kept_report_has_a_model_and_every_model_a_report() -> None:
    assert sorted({**reports.REPORTS, **reports.ZOO_REPORTS}) == KEPT


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_report_is_written_as_reports_are(name: str) -> None:
    kept = (reports.FOLDER / f"{name}.json").read_text()
    assert reports.text(json.loads(kept)) == kept


@pytest.fixture
def kept() -> dict[str, Any]:
    """A report with shortcuts, rewrites and refusals."""
    found: dict[str, Any] = json.loads((reports.FOLDER / "zoo_resnet50d.json").read_text())
    return found


# The comparison can fail


def change_a_count(report: dict[str, Any]) -> None:
    report["graph"]["after"]["ops"]["conv2d"] += 1


def change_a_module(report: dict[str, Any]) -> None:
    entry = next(entry for entry in report["passes"] if entry["rewrites"])
    entry["rewrites"][0]["module"] = "elsewhere"


def lose_a_rewrite(report: dict[str, Any]) -> None:
    next(entry for entry in report["passes"] if entry["rewrites"])["rewrites"].pop()


def change_a_reason(report: dict[str, Any]) -> None:
    report["passes"][0]["refusals"].append({"at": "add", "module": "", "reason": "unsafe"})


def rename_a_node(report: dict[str, Any]) -> None:
    report["shortcuts"][0]["fork"] = "convolution"


def lose_a_node(report: dict[str, Any]) -> None:
    report["shortcuts"][0]["body"].pop()


CHANGES = [change_a_count, change_a_module, lose_a_rewrite, change_a_reason, lose_a_node]


@pytest.mark.parametrize("change", [*CHANGES, rename_a_node])
def test_a_change_is_found(kept: dict[str, Any], change: Any) -> None:
    assert not reports.differences("zoo_resnet50d", reports.text(kept))
    change(kept)
    assert reports.differences("zoo_resnet50d", reports.text(kept))


# Another release of torch


@pytest.mark.parametrize("change", CHANGES)
def test_another_release_of_torch_excuses_no_change(
    kept: dict[str, Any], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "release", lambda: "9.9")
    change(kept)
    assert reports.differences("zoo_resnet50d", reports.text(kept))


def test_another_release_of_torch_may_name_nodes_otherwise(
    kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "release", lambda: "9.9")
    for item in kept["shortcuts"]:
        item["fork"] += "_renamed"
        item["path"] = [f"{name}_renamed" for name in item["path"]]
    for entry in kept["passes"]:
        for item in (*entry["rewrites"], *entry["refusals"]):
            item["at"] += "_renamed"
        for item in entry["rewrites"]:
            item["removed"] = [f"{name}_renamed" for name in item["removed"]]
    assert not reports.differences("zoo_resnet50d", reports.text(kept))


def test_the_numbers_of_nodes_in_sentences_vary_with_the_release() -> None:
    report = {
        "shortcuts": [],
        "passes": [
            {
                "name": "collapse",
                "rolled_back": False,
                "rewrites": [
                    {"at": "bn", "what": "norm into conv2d_3", "removed": ["a"], "added": []}
                ],
                "refusals": [{"at": "bn", "reason": "conv2d_12 is also read by max_pool2d_1"}],
            }
        ],
    }
    (entry,) = reports.nameless(report)["passes"]
    assert entry["rewrites"][0]["what"] == "norm into conv2d"
    assert entry["refusals"][0]["reason"] == "conv2d is also read by max_pool2d"


# Passes with another name


def test_every_kept_pass_is_one_of_todays(kept: dict[str, Any]) -> None:
    today = [kind.name for kind in passfx.PASSES]
    assert [item["name"] for item in kept["passes"]] == today
