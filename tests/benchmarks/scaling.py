"""The seconds that each pass takes on graphs of 1,000, 3,000 and 10,000 nodes, without proofs.

    python -m tests.benchmarks.scaling [GRAPH ...] [--counts 1000 3000 10000]

The last column is the time a node at the largest count over that at the smallest: 1 is linear.
"""

import argparse
import time

from passfx.passes import PASSES
from passfx.pipeline import run_passes
from passfx.target import CPU
from tests.large import GRAPHS


def main() -> None:
    """Print one row a graph and pass."""
    names = [build.__name__ for build in GRAPHS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("graphs", nargs="*", metavar="GRAPH", help=", ".join(names))
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10000])
    options = parser.parse_args()
    if unknown := set(options.graphs).difference(names):
        parser.error(f"no such graph: {', '.join(unknown)}; there are {', '.join(names)}")
    counts = options.counts
    print(f"| graph | pass | {' | '.join(f'{count:,} nodes' for count in counts)} | ratio |")
    print(f"| --- | --- | {'--- | ' * len(counts)}--- |")
    for build in GRAPHS:
        if options.graphs and build.__name__ not in options.graphs:
            continue
        seconds: dict[str, list[float]] = {kind.name: [] for kind in PASSES}
        for count in counts:
            graph_module = build(count)
            for kind in PASSES:
                started = time.process_time()
                run_passes(graph_module, [kind(CPU)], verify=False)
                seconds[kind.name].append(time.process_time() - started)
        for name, taken in seconds.items():
            ratio = taken[-1] / taken[0] * counts[0] / counts[-1]
            row = " | ".join(f"{item:.2f} s" for item in taken)
            print(f"| {build.__name__} | {name} | {row} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
