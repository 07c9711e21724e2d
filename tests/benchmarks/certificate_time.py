"""What certificates cost at several image sizes; the last column should be about 1.

The seconds are the processor's, inside the certificates alone, while all passes run.

    python tests/benchmarks/certificate_time.py [SOURCE ...] [--sizes 64,224]
"""

import argparse
import time
from unittest.mock import patch

from passfx import pipeline
from passfx.capture.program import capture
from passfx.graph.editor import Certificate, Edit
from passfx.source.load import load_source
from passfx.source.spec import SourceSpec
from passfx.verify.certificate import certify

SOURCES = ("torchvision:resnet18", "timm:resnet50d")


def certificates(source: str, size: int) -> list[float]:
    """The seconds of each certificate of a model at an image size."""
    loaded = load_source(SourceSpec(source, input_shapes=[f"1x3x{size}x{size}"]))
    program = capture(loaded.model, loaded.args, loaded.kwargs)
    seconds = []

    def timed(edit: Edit) -> Certificate:
        started = time.process_time()
        found = certify(edit)
        seconds.append(time.process_time() - started)
        return found

    with patch.object(pipeline, "certify", timed):
        pipeline.optimize_graph(program, pipeline.Plan().passes)
    return seconds


def main() -> None:
    """Print one row a source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=SOURCES)
    parser.add_argument("--sizes", default="64,224")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    columns = [f"s at {size}" for size in sizes]
    print(f"| model | certificates | {' | '.join(columns)} | ratio |")
    print("| --- " * (len(sizes) + 3) + "|")
    for source in options.sources:
        found = [certificates(source, size) for size in sizes]
        totals = [sum(seconds) for seconds in found]
        figures = " | ".join(f"{total:.2f}" for total in totals)
        print(
            f"| {source} | {len(found[0])} | {figures} | {totals[-1] / totals[0]:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
