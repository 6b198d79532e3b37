"""A folder for one process alone, so that two never write into the same run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fedgh.core.errors import InUseError

try:
    import fcntl
except ImportError:  # Windows has no such locks; folders are then not guarded
    fcntl = None  # type: ignore[assignment]


@contextmanager
def claim(folder: Path, remedy: str) -> Iterator[None]:
    """Hold a folder as long as the context, or this process, lives; a kill releases it, too.

    Args:
        folder: Is made if it does not exist.
        remedy: What to do when another process has it, for the message.

    Raises:
        InUseError: If another process holds the folder, saying which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise InUseError(f"{folder} is in use by {lock.read() or 'another process'}; {remedy}") from None
            except OSError:  # a file system without locks
                pass
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Tell whether a process holds a folder, which need not exist."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with claim(folder, ""):
            return False
    except InUseError:
        return True
    except OSError:  # not ours to write to
        return False
