"""`passfx passes`: what there is, and what each does."""

from typing import Any

import pytest

import passfx
from passfx.export.passes import FILE_PASSES
from passfx.passes.base import explanation, summary
from tests.cli.net import Invoke

KINDS: tuple[Any, ...] = (*passfx.PASSES, *FILE_PASSES)


def test_passes_are_listed_in_their_order(invoke: Invoke) -> None:
    result = invoke("passes")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines == [[kind.name, summary(kind)] for kind in KINDS]
    assert result.exit_code == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_pass_is_explained_as_it_is_documented(invoke: Invoke, kind: Any) -> None:
    result = invoke("passes", kind.name)
    assert result.stdout == f"{kind.name}\n\n{explanation(kind)}\n"


def test_unknown_pass(invoke: Invoke) -> None:
    result = invoke("passes", "fold")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no pass 'fold'; the passes are remove-unused")


def test_a_misspelt_pass_suggests_the_nearest(invoke: Invoke) -> None:
    result = invoke("passes", "colapse")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: there is no pass 'colapse'; did you mean collapse?\n"


def test_a_former_name_is_answered_with_the_present_one(invoke: Invoke) -> None:
    result = invoke("passes", "move-pools")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: the pass 'move-pools' is now 'move-resampling'\n"
