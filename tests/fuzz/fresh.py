"""Commands that fork, in a process of their own: a fork copies no threads, but their locks."""

import os
import subprocess
import sys
from pathlib import Path


def run_fresh(module: str, count: int) -> str:
    """What `python -m MODULE --count COUNT` prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--count", str(count)],
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
