"""A report as one HTML page that needs nothing else."""

from jinja2 import Environment, PackageLoader

from passfx.report.bench import BenchReport
from passfx.report.console import bench_cells, format_bytes, format_count
from passfx.report.model import Report
from passfx.version import __version__


def to_html(report: Report | BenchReport) -> str:
    """The page; everything that comes from the model is escaped.

    That of a benchmark: a bar of the median for each row, a line to p99, and the table.
    """
    name = "bench" if isinstance(report, BenchReport) else "report"
    environment = Environment(loader=PackageLoader("passfx", "report"), autoescape=True)
    environment.globals |= {"count": format_count, "bytes": format_bytes, "cells": bench_cells}
    return environment.get_template(f"{name}.html.j2").render(report=report, version=__version__)
