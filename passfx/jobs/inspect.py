"""What a model holds and what the passes would do to it; nothing is written."""

from passfx.jobs.optimize import optimize_source
from passfx.pipeline import Plan, Progress, silent
from passfx.report.model import Report
from passfx.source.spec import SourceSpec


def inspect(spec: SourceSpec, plan: Plan, progress: Progress = silent) -> Report:
    """The report of a source after the passes."""
    return optimize_source(spec, plan, progress).report
