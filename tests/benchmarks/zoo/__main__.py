"""Convert every family of models that people bring, and check the files independently of passfx.

The smallest model of every timm family, every builder of torchvision, and thirty models of the
packages of the extra `wild`; each static and with a dynamic batch, in a process of its own, with
random norms, biases and layer scales. Each file is run under ONNX Runtime on fresh inputs, with
batch 1, and with 3 where it is dynamic, and compared with the model in float64: of each output,
max |difference| / max |reference| may be 1e-4, or ten times that of the float32 model in PyTorch.

    python -m tests.benchmarks.zoo [--only PATTERN ...] [--static | --dynamic] [--resume FILE.jsonl]
    python -m tests.benchmarks.zoo --table FILE.jsonl    # markdown, the summary first

Outcomes: right; refused, with a sentence, where plain `torch.onnx.export` gives no right file
either; failed. With --resume what FILE has is not run again (failures are with --again), and new
records are appended to it.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks.zoo.cases import matching
from tests.benchmarks.zoo.run import Record, kept, run_all
from tests.benchmarks.zoo.table import groups, markdown, summary


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="as timm:res*, or wild")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--static", action="store_true", help="fixed sizes alone")
    modes.add_argument("--dynamic", action="store_true", help="a dynamic batch alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds each")
    parser.add_argument("--resume", type=Path, metavar="FILE.jsonl", help="read and append to")
    parser.add_argument("--again", action="store_true", help="run what was not right again")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--table", type=Path, metavar="FILE.jsonl", help="print what was found")
    options = parser.parse_args()
    if options.table:
        records = kept(options.table)
        print("\n\n".join(filter(None, (summary(records), groups(records), markdown(records)))))
        return
    names = [case.name for case in matching(*(options.only or ["*"]))]
    if options.list:
        print("\n".join(names))
        return
    wanted = ["static"] * (not options.dynamic) + ["dynamic"] * (not options.static)
    before = kept(options.resume) if options.resume else []
    done = {
        (item["name"], item["mode"])
        for item in before
        if item["outcome"] == "right" or not options.again
    }
    jobs = [(name, mode) for name in names for mode in wanted if (name, mode) not in done]
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        print(
            record["outcome"].ljust(8), record["mode"].ljust(8), record["name"],
            f"({record['wall']:.0f} s)", record.get("error", ""), flush=True,
        )  # fmt: skip
        if options.resume:
            with options.resume.open("a") as file:
                file.write(json.dumps(record) + "\n")

    run_all(jobs, options.jobs, options.timeout, keep)
    print("\n" + summary(kept(options.resume) if options.resume else records))
    sys.exit(any(record["outcome"] == "failed" for record in records))


if __name__ == "__main__":
    main()
