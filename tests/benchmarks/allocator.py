"""What keeping freed memory gains: rounds in processes with and without the setting, in turn.

``allocator.py '<sequential|bare|cell> <workload>' <0 or 1>`` prints the seconds of a round, the first not counted.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import workloads
from cell import COLUMNS, training
from workloads import WORKLOADS, BareLoop, build, rounds

from fedgh.core.allocator import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmark import Bench, Row

MEASURED = {
    **{f"{kind} {name}": f"a round of {name}, {kind}" for kind in ("sequential", "bare") for name in ("W1", "W2")},
    **{f"cell {name}": f"a client of {column.name}" for name, column in COLUMNS.items()},
}
CPU = torch.device("cpu")


def allocator(bench: Bench) -> Iterator[Row]:
    """The round of each workload; on a GPU the setting changes nothing."""
    if bench.device.type != "cpu":
        return
    for name, what in MEASURED.items():
        kept, ratios = [], []
        for _ in range(bench.pairs):
            without = seconds(name, keep=False)
            kept.append(seconds(name, keep=True))
            ratios.append(kept[-1] / without)
        yield (
            f"freed memory kept, {what}",
            f"{statistics.median(kept):.3g} s",
            f"{statistics.median(ratios):.3f} of the time without",
        )


def seconds(name: str, keep: bool) -> float:
    """Measure in a process of its own: the setting cannot be taken back."""
    command = [sys.executable, __file__, name, str(int(keep))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    (kind, name), keep = sys.argv[1].split(), sys.argv[2]
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if keep == "1":
        keep_freed_memory()
    workloads.keep_freed_memory = lambda: False  # what building a federation would do
    play: Callable[[], object]
    if kind == "bare":
        play = BareLoop(WORKLOADS[name], CPU)
    elif kind == "sequential":
        play = rounds(build(WORKLOADS[name], "sequential", CPU))
    else:
        client = replace(COLUMNS[name], num_clients=1, clients_per_round=1)
        play = training(build(client, "sequential", CPU, torch.channels_last))
    play()
    started = time.perf_counter()
    play()
    sys.stdout.write(f"{time.perf_counter() - started}\n")


if __name__ == "__main__":
    main()
