"""Where a command writes: results to stdout, unless JSON goes there; the rest to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passfx.files import check_writable, write_text

if TYPE_CHECKING:
    from passfx.report.bench import BenchReport
    from passfx.report.model import Report

_FILE_WIDTH = 160  # columns of a table in a file or a pipe


class Output:
    """The console for people, and the files that `--json` and `--report` ask for."""

    def __init__(
        self, json_path: str | None = None, html_path: Path | None = None, quiet: bool = False
    ) -> None:
        from rich.console import Console

        self._json_path, self._html_path = json_path, html_path
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        is_alone = json_path == "-"
        self.console = Console(
            stderr=is_alone, quiet=quiet, highlight=False, markup=False, soft_wrap=True
        )
        if not self.console.is_terminal:
            self.console.width = _FILE_WIDTH
        for path in (self.json_path, html_path):
            if path is not None:
                check_writable(path)

    @property
    def json_path(self) -> Path | None:
        """The file of `--json`; None where it is stdout, or not asked for."""
        return None if self._json_path in (None, "-") else Path(str(self._json_path))

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """Tell the stage on stderr while it runs; silent where that is no terminal."""
        if self.console.quiet or not self.errors.is_terminal:
            yield lambda _: None
            return
        with self.errors.status("load") as status:
            yield status.update

    def write(self, report: "Report | BenchReport") -> None:
        """The report, as `--json` and `--report` ask for it; a file whole or not at all."""
        if self._html_path is not None:
            from passfx.report.html import to_html

            write_text(self._html_path, to_html(report))
        self.write_json(report.to_dict())

    def write_json(self, found: dict[str, Any]) -> None:
        """Plain values, as `--json` asks for them."""
        if self._json_path is None:
            return
        # JSON has no infinity and no NaN; a report says them as strings.
        text = json.dumps(found, default=str)
        plain = json.loads(text, parse_constant=lambda name: str(float(name)))
        text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
        if self.json_path is None:
            sys.stdout.write(text)
        else:
            write_text(self.json_path, text)
