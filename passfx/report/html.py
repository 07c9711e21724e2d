"""A report as one HTML page that needs nothing else."""

from jinja2 import Environment, PackageLoader

from passfx.report.bench import BenchReport
from passfx.report.console import bench_cells, format_bytes, format_count
from passfx.report.model import Report
from passfx.version import __version__


def to_html(report: Report) -> str:
    """The page; everything that comes from the model is escaped."""
    environment = Environment(loader=PackageLoader("passfx", "report"), autoescape=True)
    names = {**report.before.ops, **report.after.ops}
    operators = [
        (name, report.before.ops.get(name, 0), report.after.ops.get(name, 0)) for name in names
    ]
    return environment.get_template("report.html.j2").render(
        report=report,
        operators=operators,
        count=format_count,
        bytes=format_bytes,
        version=__version__,
    )


def bench_to_html(report: BenchReport) -> str:
    """The page of a benchmark: a bar of the median for each row, a line to p99, and the table."""
    environment = Environment(loader=PackageLoader("passfx", "report"), autoescape=True)
    groups = []
    for batch in dict.fromkeys(row.batch for row in report.rows):
        rows = [row for row in report.rows if row.batch == batch]
        groups.append((batch, rows, max((row.p99 or 0 for row in rows), default=0)))
    return environment.get_template("bench.html.j2").render(
        report=report, groups=groups, cells=bench_cells, count=format_count, version=__version__
    )
