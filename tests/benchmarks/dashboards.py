"""What the offline page of a hundred runs takes to write."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROUNDS = 20
TINY = (f"num_rounds={ROUNDS}", "partition.num_clients=10", "dataset.train_fraction=0.2", "model.hidden=[4]")
SEEDS, ALPHAS = range(1, 11), (0.01, 0.03, 0.1, 0.3, 1.0)
METHODS = ("fedgh.aggregator.mean.Mean", "fedgh.aggregator.fedgh.FedGH")


def dashboard(bench: Any) -> Iterator[tuple[str, str, str]]:
    """Copies of one finished run with the default callbacks: two methods, five splits, ten seeds."""
    took = []
    with TemporaryDirectory() as folder:
        run, runs = Path(folder, "run"), Path(folder, "runs")
        call("fedgh.cli.train", *TINY, "aggregator=fedgh", f"hydra.run.dir={run}")
        for number, (method, alpha, seed) in enumerate(product(METHODS, ALPHAS, SEEDS)):
            copy = Path(shutil.copytree(run, runs / f"{number}", ignore=shutil.ignore_patterns("checkpoints")))
            settings = yaml.safe_load((copy / "config.yaml").read_text())
            settings["aggregator"]["_target_"], settings["partition"]["alpha"], settings["seed"] = method, alpha, seed
            (copy / "config.yaml").write_text(yaml.safe_dump(settings))
        for _ in range(bench.pairs):
            started = time.perf_counter()
            call("fedgh.cli.dashboard", f"runs={runs}", f"hydra.run.dir={folder}/out")
            took.append(time.perf_counter() - started)
        size = Path(folder, "out", "dashboard.html").stat().st_size
        yield (
            f"the offline dashboard of {number + 1} runs",
            f"{statistics.median(took):.1f} s, Python's start included",
            f"{ROUNDS} rounds each; a page of {size / 1e6:.1f} MB",
        )


def call(module: str, *arguments: str) -> None:
    """Run a command of ours in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "WANDB_MODE": "offline"})
