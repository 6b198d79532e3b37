"""What of the machine this process may use."""

from __future__ import annotations

import os

FP32_PRECISIONS = ("ieee", "tf32")
"""Of float32 arithmetic on a GPU: all 23 bits of the mantissa, or TensorFloat-32's ten, several times faster."""


def usable_cores() -> int:
    """Return the number of processor cores that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
