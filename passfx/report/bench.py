"""What `passfx bench` measured, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from passfx.version import __version__


@dataclass(frozen=True)
class BenchRow:
    """One way to run the model at one batch size; figures are None where it failed.

    Attributes:
        p50, p90, p99: milliseconds of one run.
        throughput: samples a second, batch / p50.
        speedup: of the median, against the row's baseline in the same race.
        roofline: the least time that the operators of its file could take at the device's peaks,
            divided by p50; at most 1, because a peak that a row exceeds is no peak.
        rel_error: max |difference| / max |reference|, of the worst output.
        runs: that were counted.
        failed: why there are no figures.
    """

    name: str
    batch: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    throughput: float | None = None
    speedup: float | None = None
    roofline: float | None = None
    rel_error: float | None = None
    runs: int = 0
    failed: str | None = None


@dataclass(frozen=True)
class BenchReport:
    """One run of the benchmark.

    Attributes:
        baseline: the row that speed-ups are against.
        reference: what errors are measured from.
        notes: sentences that the figures are to be read with.
        peaks: multiply-accumulates a second by dtype, and bytes a second ("bandwidth"), of the
            best kernels that were timed, or of the best row where that is better.
    """

    source: str
    provider: str
    device: str
    baseline: str
    reference: str
    versions: Mapping[str, str]
    peaks: Mapping[str, float]
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"passfx": __version__, **asdict(self)}
