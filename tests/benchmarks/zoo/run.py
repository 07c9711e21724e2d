"""Workers: one process a model and mode, with a time limit, their records kept as they come."""

import json
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin would take the cores from other processes
    "HF_HUB_OFFLINE": "1",
    "YOLO_CONFIG_DIR": tempfile.gettempdir(),
}
PEERS = ("onnxslim", "onnxsim")  # stages in which a crash is not passfx's


def kept(path: Path) -> list[Record]:
    """The records of a file; of two of the same model and mode the later one."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = map(json.loads, filter(str.strip, lines))
    return list({(item["name"], item["mode"]): item for item in records}.values())


def run_all(
    jobs: Sequence[tuple[str, str]], count: int, limit: float, keep: Callable[[Record], None]
) -> None:
    """Run names and modes, `count` at a time; `keep` gets each record."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.zoo.preload"])
    waiting: queue.Queue[tuple[str, str]] = queue.Queue()
    for job in jobs:
        waiting.put(job)
    lock = threading.Lock()

    def loop() -> None:
        while True:
            try:
                name, mode = waiting.get_nowait()
            except queue.Empty:
                return
            record = run_one(context, name, mode, limit)
            with lock:
                keep(record)

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_one(context: Any, name: str, mode: str, limit: float) -> Record:
    """The record of one model and mode, whatever becomes of its process."""
    from tests.benchmarks.zoo.worker import work

    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=work, args=(name, mode, folder))
        started = time.perf_counter()
        process.start()
        process.join(limit)
        timed_out = process.is_alive()
        if timed_out:
            process.kill()
            process.join()
        place = Path(folder) / "record.json"
        record = json.loads(place.read_text()) if place.exists() else {"stage": "start"}
        record = {"name": name, "mode": mode, **record, "wall": time.perf_counter() - started}
        stage = record.pop("stage")
        if stage == "done":
            return record
        end = f"more than {limit:.0f} s" if timed_out else f"exit code {process.exitcode}"
        sentence = f"{end} in: {stage}"
        if stage in PEERS:
            return {**record, "peers": sentence}
        noise = Path(folder) / "stderr"
        tail = noise.read_text(errors="replace")[-1500:] if noise.exists() else ""
        return {**record, "outcome": "failed", "error": sentence, "stderr": tail}
