"""Draw networks, rewrite them, and count what came of them; a failure is printed at its smallest.

    python -m tests.fuzz.networks --count 2000 [--seed 0] [--jobs 2] [--onnx]

Every network is rewritten with certificates and without, and both are run on the example, on other
values, and at five other sizes where sizes may vary. With `--onnx` it is converted in float32, and
the file runs under ONNX Runtime. The exit code is 1 where anything failed.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from tests.fuzz.check import Outcome, check, check_file
from tests.fuzz.drawing import draw_network
from tests.fuzz.minimise import minimise

KINDS = "fine", "refused", "unproven", "mismatch", "error"


def outcome_of(seed: int, onnx: bool = False) -> Outcome:
    """What comes of the network of a seed."""
    network = draw_network(seed)
    with warnings.catch_warnings(action="ignore"):
        return check_file(network) if onnx else check(network)


def outcomes(seeds: Iterable[int], jobs: int = 1, onnx: bool = False) -> Iterator[Outcome]:
    """What comes of the networks of some seeds, in their order."""
    work = partial(outcome_of, onnx=onnx)
    if jobs == 1:
        yield from map(work, seeds)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, partial(torch.set_num_threads, 1)) as pool:
        yield from pool.map(work, seeds, chunksize=8)


def smallest(seed: int, onnx: bool = False) -> str:
    """The smallest network that fails as that of a seed does, as Python."""
    judge = check_file if onnx else check
    with warnings.catch_warnings(action="ignore"):
        return minimise(draw_network(seed), judge).source()


def table(found: dict[int, Outcome]) -> str:
    """The figures, and every reason with the number of times that it was given."""
    kinds = Counter(item.kind for item in found.values())
    rewrites = [
        sum(column)
        for column in zip(*(o.rewrites for o in found.values() if o.rewrites), strict=True)
    ]
    undone = Counter(_shape(reason) for item in found.values() for reason in item.undone)
    lines = [
        f"networks                {len(found)}",
        *(f"{kind:24}{kinds[kind]}" for kind in KINDS),
        f"other sizes, right      {sum(item.sizes for item in found.values())}",
        f"other sizes, refused    {sum(item.kept_out for item in found.values())}",
        f"rewrites                {' / '.join(map(str, rewrites))} (with / without certificates)",
        f"undone                  {sum(undone.values())}",
        *(f"  {count:4} × {reason}" for reason, count in undone.most_common()),
    ]  # fmt: skip
    for kind in ("refused", "unproven"):
        reasons = Counter(_shape(item.why) for item in found.values() if item.kind == kind)
        lines += [kind, *(f"  {count:4} × {reason}" for reason, count in reasons.most_common(40))]
    return "\n".join(lines)


def _shape(reason: str) -> str:
    """A reason without its numbers."""
    return "".join("#" if letter.isdigit() else letter for letter in reason)[:150]


def main() -> int:
    """Print the table; on failure the seeds and the smallest networks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--show", type=int, default=3, help="how many failures to minimise")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.count)
    found: dict[int, Outcome] = {}
    for seed, outcome in zip(seeds, outcomes(seeds, options.jobs, options.onnx), strict=True):
        found[seed] = outcome
        if outcome.failed or outcome.undone or outcome.kind == "unproven":
            reasons = outcome.undone if outcome.kind == "fine" else (outcome.why,)
            print(seed, outcome.kind, *reasons, sep=" | ", file=sys.stderr, flush=True)
    print(table(found))
    failed = [seed for seed, outcome in found.items() if outcome.failed]
    for seed in failed[: options.show]:
        print(f"\n# seed {seed}: {found[seed].why}\n\n{smallest(seed, options.onnx)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
