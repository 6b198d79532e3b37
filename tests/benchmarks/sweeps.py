"""What a sweep adds to each of its jobs, and what a job costs that a resumed sweep finds finished."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

JOBS = 6
TINY = ("num_rounds=1", "partition=iid", "partition.num_clients=2", "dataset.train_fraction=0.1", "model.hidden=[4]")


def sweeps(bench: Any) -> Iterator[tuple[str, str, str]]:
    """Sweeps of one job and of six: of one round each with the default callbacks and W&B offline, then resumed."""
    first, further, skipped = [], [], []
    for _ in range(bench.pairs):
        with TemporaryDirectory() as folder:
            short, long = Path(folder, "short"), Path(folder, "long")
            one, six = sweep(short, 1), sweep(long, JOBS)
            again, all_again = (sweep(path, count, "sweep.resume=true") for path, count in ((short, 1), (long, JOBS)))
        first.append(one)
        further.append((six - one) / (JOBS - 1))
        skipped.append((all_again - again) / (JOBS - 1))
    yield "a sweep of one job of one round", f"{statistics.median(first):.1f} s", "Python's start included"
    yield "a further job of one round", f"{statistics.median(further):.2f} s", "its round included"
    yield "a further job that is finished already", f"{statistics.median(skipped):.2f} s", "of a resumed sweep"


def sweep(folder: Path, jobs: int, *settings: str) -> float:
    """Return the seconds that a sweep takes, in a process of its own."""
    seeds = ",".join(map(str, range(1, jobs + 1)))
    command = [
        sys.executable,
        "-m",
        "fedgh.cli.train",
        "-m",
        *TINY,
        f"seed={seeds}",
        f"hydra.sweep.dir={folder}",
        *settings,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "WANDB_MODE": "offline"})
    return time.perf_counter() - started
