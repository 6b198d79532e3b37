"""Processor time of a round here and in another checkout, in pairs of short launches that alternate.

Two processes of identical code differ by several percent, from launch to launch and with what else the machine does,
so a launch is one number (its fastest round after the first: others can only slow a round down), a pair is a ratio,
and the median over pairs is what counts; its interval of 95 % follows from the ranks of the ratios. Processor time, so
that a busy machine tells less.

    python tests/benchmarks/against.py --other <checkout> [--workloads W1 W3] [--executors sequential] [--pairs 20]

Each launch builds the workload with its own checkout's ``tests/benchmarks/workloads.py``. Run it beside an identical
checkout first: what comes out then is what this machine cannot tell apart.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from math import comb
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[2]
PARTS = ("round", "train", "aggregate", "evaluate")


def play(checkout: Path, workload: str, executor: str, rounds: int) -> dict[str, float]:
    """Return the least seconds of processor time of each part of a round, in this process."""
    sys.path[:0] = [str(checkout / "src"), str(checkout)]
    import torch

    torch.set_num_threads(1)
    workloads = importlib.import_module("tests.benchmarks.workloads")
    for module in ("loop", "round"):  # what they record as seconds becomes processor time
        importlib.import_module(f"fedgh.federation.{module}").perf_counter = time.process_time
    if executor not in workloads.EXECUTORS:  # its name until 25 November 2026
        executor = "cohort"
    federation = workloads.build(workloads.WORKLOADS[workload], executor, torch.device("cpu"))
    one_more = workloads.rounds(federation)
    one_more()
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(rounds):
        started = time.process_time()
        metrics = one_more()
        seconds["round"].append(time.process_time() - started)
        for part in PARTS[1:]:
            seconds[part].append(metrics[f"time/{part}_seconds"])
    return {part: min(values) for part, values in seconds.items()}


def launch(checkout: Path, *arguments: str) -> dict[str, float]:
    """Return what :func:`play` found in a process of its own."""
    command = [sys.executable, "-P", __file__, "--play", str(checkout), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the interval in which the median lies with 95 %, whatever the distribution (sign test)."""
    ordered, count, below = sorted(ratios), len(ratios), 0
    while sum(comb(count, k) for k in range(below + 1)) / 2**count <= 0.025:
        below += 1
    return ordered[max(0, below - 1)], ordered[min(count - 1, count - below)]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="the checkout to compare with")
    parser.add_argument("--here", type=Path, default=HERE, help="this one, or a third")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--executors", nargs="+", default=["sequential", "vectorized"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="measured in a launch, after the first")
    parser.add_argument("--play", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        checkout, workload, executor, rounds = options.play
        say(json.dumps(play(Path(checkout), workload, executor, int(rounds))))
        return
    here, other = options.here.resolve(), options.other.resolve()
    say("processor time here / there, median over pairs (95 % interval)")
    for workload in options.workloads:
        for executor in options.executors:
            pairs = []
            for index in range(options.pairs):
                order = (here, other) if index % 2 else (other, here)
                found = {checkout: launch(checkout, workload, executor, str(options.rounds)) for checkout in order}
                pairs.append((found[here], found[other]))
            cells = []
            for part in PARTS:
                ratios = [mine[part] / theirs[part] for mine, theirs in pairs]
                low, high = interval(ratios)
                mine = median(mine[part] for mine, _ in pairs)
                cells.append(f"{part} {1e3 * mine:.1f} ms {median(ratios):.3f} ({low:.3f} to {high:.3f})")
            say(f"{workload} {executor:<10}  {'  '.join(cells)}")


if __name__ == "__main__":
    main()
