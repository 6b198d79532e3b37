"""The C library's memory, kept: a step asks again for what the last one gave back."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_KEPT = (1 << 30, 1 << 25)  # bytes; glibc before 2.35 takes no more than the second
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, up to 2 GiB in blocks of less than 1 GiB, instead of returning it.

    By default glibc gives an activation of some MiB back to the system as soon as it is freed, and the next step has
    it mapped again and cleared, page by page: up to half of a step of a small convolutional network on a CPU. No
    number changes; the process stays as large as it has been. An environment that sets glibc's thresholds itself
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``) is left as it is.

    Returns:
        Whether the C library took the setting; others than glibc have none.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)) and any(mallopt(_MMAP_THRESHOLD, n) for n in _LARGEST_KEPT)
