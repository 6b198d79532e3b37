"""Peak memory of an aggregation, to be run in a process of its own: ``memory.py <clients> <params> <dtype> <stage>``.

``stage`` is ``gram`` (what a round computes: one matrix per block where affordable), ``combine``, or ``all``: Gram
matrices, FedGH's coefficients and the weighted sum. Prints bytes as JSON: ``matrix``, the size of the update matrix,
and ``peak``, the largest resident memory less what was resident before the matrix was made.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import torch

from fedgh.aggregator.fedgh import FedGH
from fedgh.core.allocator import keep_freed_memory
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix
from fedgh.federation.round import affordable

RULE = FedGH(rescale="none", order="random", sweeps=1, scope="model", min_norm_ratio=0)
BLOCKS = 8


def updates_of(clients: int, params: int, dtype: torch.dtype) -> UpdateMatrix:
    """Return a random matrix, filled row by row: PyTorch draws bfloat16 by way of a float32 copy."""
    rows, generator = torch.empty(clients, params, dtype=dtype), torch.Generator().manual_seed(0)
    for row in rows:
        row.normal_(generator=generator)
    stops = [params * number // BLOCKS for number in range(BLOCKS + 1)]
    blocks = (Block(f"{a}", a, b, torch.Size([b - a])) for a, b in pairwise(stops))
    return UpdateMatrix(rows, tuple(blocks))


def aggregate(updates: UpdateMatrix, stage: str) -> None:
    """Do what a round does with its updates, or a part of it."""
    cohort = Cohort.of(torch.full((len(updates),), 1 / len(updates)))
    coefficients = cohort.weights
    if stage != "combine":
        block_grams = updates.gram(by_block=True) if affordable(updates) else updates.gram()[None]
        if stage == "all":
            coefficients = RULE.coefficients(block_grams.sum(0), cohort)
    if stage != "gram":
        updates.combine(coefficients)


def resident(what: str) -> int:
    """Return bytes of ``VmRSS``, resident now, or ``VmHWM``, at most; ``ru_maxrss`` would begin with the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def main() -> None:
    clients, params, dtype, stage = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), sys.argv[4]
    keep_freed_memory()  # as every command does
    aggregate(updates_of(4, 1000, dtype), stage)  # whatever is loaded once
    before = resident("VmRSS")
    updates = updates_of(clients, params, dtype)
    aggregate(updates, stage)
    peak = resident("VmHWM") - before
    sys.stdout.write(json.dumps({"matrix": updates.rows.nbytes, "peak": peak}) + "\n")


if __name__ == "__main__":
    main()
