"""The pages for people say what the code says."""

import re
from pathlib import Path

from click.testing import CliRunner

import passfx
from passfx.cli import main
from passfx.passes.base import summary

ROOT = Path(__file__).parents[1]


def test_the_page_of_passes_is_not_stale() -> None:
    page = (ROOT / "docs" / "passes.md").read_text()
    assert CliRunner().invoke(main, ["passes", "--markdown"]).stdout == page, (
        "make it anew: passfx passes --markdown > docs/passes.md"
    )
    assert all(f"\n## {kind.name}\n\n{summary(kind)}" in page for kind in passfx.PASSES)


def test_the_readme_lists_every_pass_and_keeps_rows_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"^\| `([a-z-]+)` \|", readme, re.MULTILINE)
    assert named == [kind.name for kind in passfx.PASSES]
    results = (ROOT / "tests" / "benchmarks" / "results").glob("*.md")
    kept = {line for path in results for line in path.read_text().splitlines()}
    rows = [line for line in readme.splitlines() if re.match(r"\| [\w ,()]+ \| [\d.]+ [MG] ", line)]
    assert len(rows) == 5 and kept.issuperset(rows)
