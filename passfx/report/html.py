"""A report as one HTML page that needs nothing else."""

from jinja2 import Environment, PackageLoader

from passfx.report.console import format_bytes, format_count
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
