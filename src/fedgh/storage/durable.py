"""Files that a power cut cannot take back: synced where the file system can, and replaced only by complete ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fedgh.core.errors import StorageError

_DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def is_about_the_disk(error: BaseException) -> bool:
    """Tell whether an error says that the disk is full, read-only or broken."""
    return isinstance(error, OSError) and error.errno in _DISK


def cause_of(error: BaseException) -> str:
    """Return what the system said, such as ``No space left on device``, however deep it lies below an error."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return str(error).strip().partition("\n")[0]


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
        if is_about_the_disk(error):  # everything else says that there are no syncs here
            raise


def sync_all(paths: Iterable[Path]) -> None:
    """Sync many files at once, which a file system does in fewer steps than one after the other."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync, paths))


def replace_file(path: Path, content: bytes) -> None:
    """Give a file, and a folder where there is none, new content; a reader finds the old or the new. Not synced.

    Raises:
        StorageError: If it cannot be written, for instance because the disk is full.
    """
    aside = path.with_name(f".{path.name}.tmp")  # readers of a folder of tables leave dot files out
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
