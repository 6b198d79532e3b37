"""Files that a power cut cannot take back: synced where the file system can, and replaced only by complete ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fedgh.core.errors import StorageError

_SERIOUS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a sync may report that is about the data; everything else says that there are no syncs here."""


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Network file systems refuse to sync a folder (EINVAL), Windows even to open one (EACCES); they are left to their
    own devices.

    Raises:
        OSError: If the disk could not take the data.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in _SERIOUS:
            raise


def sync_all(paths: Iterable[Path]) -> None:
    """Sync many files at once, which a file system does in fewer steps than one after the other."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, so that a reader finds the old or the new, never a part; not synced.

    Raises:
        StorageError: If it cannot be written, for instance because the disk is full.
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
