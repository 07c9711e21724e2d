"""A report as one HTML page that needs nothing else."""

from jinja2 import Environment, PackageLoader, Template

from passfx.report.bench import BenchReport
from passfx.report.console import bench_cells, format_bytes, format_count
from passfx.report.model import Report
from passfx.version import __version__


def to_html(report: Report) -> str:
    """The page; everything that comes from the model is escaped."""
    return _template("report").render(report=report, bytes=format_bytes)


def bench_to_html(report: BenchReport) -> str:
    """The page of a benchmark: a bar of the median for each row, a line to p99, and the table."""
    groups = []
    for batch in dict.fromkeys(row.batch for row in report.rows):
        rows = [row for row in report.rows if row.batch == batch]
        groups.append((batch, rows, max((row.p99 or 0 for row in rows), default=0)))
    return _template("bench").render(report=report, groups=groups, cells=bench_cells)


def _template(name: str) -> Template:
    environment = Environment(loader=PackageLoader("passfx", "report"), autoescape=True)
    environment.globals |= {"count": format_count, "version": __version__}
    return environment.get_template(f"{name}.html.j2")
