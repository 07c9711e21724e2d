"""The command line: one file a command; the only place that prints and sets exit codes."""

from passfx.cli.main import main

__all__ = ["main"]
