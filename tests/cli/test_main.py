"""`passfx` itself: help, version, commands that do not exist."""

import re

import pytest

import passfx
from passfx.cli import main
from tests.cli.net import Invoke


def test_help_names_every_command(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("convert", "inspect", "verify", "passes", "doctor"):
        (line,) = re.findall(rf"^  {command} +(.*)$", result.stdout, re.MULTILINE)
        assert line.endswith(".") and not line.endswith("...")  # nothing is cut off
    assert "Exit codes: 0 done; 1 the result failed verification; 2 bad" in result.stdout


def test_nothing_shows_the_help(invoke: Invoke) -> None:
    assert invoke().stdout == invoke("--help").stdout
    assert invoke().exit_code == 0


@pytest.mark.parametrize("name", sorted(main.commands))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_every_command(invoke: Invoke, name: str, flag: str) -> None:
    result = invoke(name, flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: passfx {name} [OPTIONS]")
    options = result.stdout.partition("Options:\n")[2]
    described = re.findall(r"^  (-.*(?:\n {10,}\S.*)*)", options, re.MULTILINE)
    assert described
    for option in described:
        assert re.search(r"(?:  |\n {10,})[A-Z\[].*[.\]]$", option, re.DOTALL), option


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"passfx {passfx.__version__}\n"


def test_unknown_command(invoke: Invoke) -> None:
    result = invoke("convrt")
    assert result.exit_code == 2
    assert re.fullmatch(r"error: no such command 'convrt'.*; see passfx --help\n", result.stderr)
