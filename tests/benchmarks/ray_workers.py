"""What Ray's workers make of the cores that the sequential executor's threads would use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workloads import WORKLOADS, build, rounds


def ray_workers(bench: Any) -> Iterator[tuple[str, str, str]]:
    """Two workers of Ray, a thread each, against the sequential executor with the threads of this process."""
    for name, times in (("W1", 1), ("W3", 20)):
        ours, other = (build(WORKLOADS[name], executor, bench.device) for executor in ("ray", "sequential"))
        ours.executor.open()
        try:
            seconds, ratio = bench.pair(rounds(ours), rounds(other), times)
        finally:
            ours.executor.close()
        yield f"{name}, two workers of Ray", f"{seconds:.4f} s a round", f"{ratio:.3f} of the sequential executor"
