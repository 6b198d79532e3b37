"""A folder for one process alone, so that two never write into the same run, nor one run over another."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from fedgh.core.command import resume_command, setting
from fedgh.core.errors import ConfigurationError, FedGHError, InUseError

try:
    import fcntl
except ImportError:  # Windows has no such locks; folders are then not guarded
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PATTERN = "round_*.ckpt"
"""Of checkpoints in a run's folder of them."""
RUN_FILES = ("config.yaml", "metrics.csv", "summary.json")
RUN_FOLDERS = ("checkpoints", "recording", "conflict")
"""By which a directory is known to hold a run, the folders if there is anything in them."""

SWEEP_FILE = "sweep.json"
"""By which a directory is known to be that of a sweep."""

_BEFORE_A_RUN = {
    LOCK,
    ".hydra",
    ".hydra_resumed",
    *(f"{task}.log" for task in ("train", "evaluate", "replay", "report", "dashboard", "encode", "leaderboard")),
}
"""What there may be before a task has written anything of its own."""


@contextmanager
def claim(folder: Path, remedy: str) -> Iterator[None]:
    """Hold a folder as long as the context, or this process, lives; a kill releases it, too.

    The lock file says which process holds it, of which machine only by a number that changes with every boot: folders
    are shared, and the name of a machine is nobody's business.

    Args:
        folder: Is made if it does not exist.
        remedy: What to do when another process has it, for the message.

    Raises:
        InUseError: If another process holds the folder, saying which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        if not try_lock(lock):
            lock.seek(0)
            raise InUseError(f"{folder} is in use by {_holder(lock.read())}; {remedy}")
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M:%S} boot {_boot()}")
        lock.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                lock.truncate(0)


def in_use(folder: Path) -> bool:
    """Tell whether a process holds a folder, which need not exist."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with claim(folder, ""):
            return False
    except InUseError:
        return True
    except OSError:  # not ours to write to
        return False


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, unless another one has it; a file system without locks locks nothing."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _boot() -> str:
    """Return what tells this machine from others until it is booted again, and nothing else about it."""
    try:
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:12]
    except OSError:
        return "unknown"


def _holder(text: str) -> str:
    who, _, boot = text.partition(" boot ")
    if not boot:
        return who or "another process"
    where = "on another machine" if "unknown" not in (boot, _boot()) and boot != _boot() else "on this machine"
    process, _, since = who.partition(" since ")
    return f"{process} {where} since {since}"


@contextmanager
def run_directory(folder: Path, resumed: bool) -> Iterator[None]:
    """Hold the directory of one run, which holds no other one; a run that is refused leaves nothing behind.

    Args:
        folder: Is made if it does not exist.
        resumed: Whether it is the directory's own run that goes on.

    Raises:
        InUseError: If another process writes to it.
        ConfigurationError: If it holds a run and none is resumed.
    """
    with claim(folder, "wait until it has ended"):
        if not resumed:
            refuse_if_taken(folder)
        try:
            yield
        except FedGHError:
            if not resumed:
                _remove_traces(folder)
            raise


def refuse_if_taken(folder: Path) -> None:
    """Refuse to begin a run in a directory that holds one, or that is a sweep's.

    Raises:
        ConfigurationError: Naming what is there, and how to go on with it.
    """
    found = found_of_run(folder)
    if found is None:
        return
    resume = resume_command(folder)
    what, remedy = "a run", f"go on with it, {resume}, or"
    if found == SWEEP_FILE:
        what, remedy = "a sweep", f"go on with it by -m and {setting('sweep.resume', folder)}, or"
    elif not has_files(folder / "checkpoints"):
        remedy = f"it has no checkpoint, so {resume} cannot go on with it;"
    raise ConfigurationError(
        f"{folder} holds {what} already ({found}), which is left as it is; {remedy} choose another directory: "
        "hydra.run.dir=<folder>, in Python paths.output_dir"
    )


def found_of_run(folder: Path) -> str | None:
    """Return what shows that a directory holds a run, or is a sweep's; None if nothing does."""
    files = [name for name in (SWEEP_FILE, *RUN_FILES) if (folder / name).exists()]
    return next(iter([*files, *(f"{name}/" for name in RUN_FOLDERS if has_files(folder / name))]), None)


def run_of(path: Path) -> Path:
    """Return the directory of the run that a path names: itself, or that of a checkpoint or its folder."""
    if path.suffix == ".ckpt":
        path = path.parent
    return path.absolute().parent if path.absolute().name == "checkpoints" else path


def has_files(folder: Path) -> bool:
    """Tell whether there is anything in a folder, which need not exist."""
    return folder.is_dir() and any(folder.iterdir())


def leave_nothing_behind(folder: Path) -> None:
    """Remove the directory of a run that was refused before it wrote anything; none that any process is at."""
    with suppress(OSError, InUseError):
        if folder.is_dir() and _holds_traces_only(folder):
            with claim(folder, ""):
                _remove_traces(folder)


def _remove_traces(folder: Path) -> None:
    with suppress(OSError):
        if _holds_traces_only(folder):
            shutil.rmtree(folder)


def _holds_traces_only(folder: Path) -> bool:
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return all(path.relative_to(folder).parts[0] in _BEFORE_A_RUN for path in files)
