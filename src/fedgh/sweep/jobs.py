"""A list of runs, each in a directory of its own: skip the finished, resume the interrupted, go on after a failure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml

from fedgh.core.errors import DataError
from fedgh.core.machine import usable_cores
from fedgh.storage.checkpoint import PATTERN

try:
    import fcntl
except ImportError:  # Windows has no such locks; see fedgh.storage.claim
    fcntl = None  # type: ignore[assignment]

NOT_COMPARED = (
    *("paths", "name", "tags", "task_name", "resume", "logger", "callback", "checkpoint", "trainer", "executor"),
    *("sweep", "dataset.root", "dataset.download", "evaluation.batch_size"),
)
"""Settings that do not make another run: where things are, what is recorded, and how fast."""

PROGRAM = ("-m", "fedgh.cli.train")
POLL_SECONDS = 0.1
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        name: For the reader.
        directory: Its own, absolute; its output goes to a file beside it, ``<directory>.log``.
        overrides: Arguments of ``fedgh-train``.
    """

    name: str
    directory: Path
    overrides: tuple[str, ...]

    @property
    def log(self) -> Path:
        """The file with everything that the run printed."""
        return self.directory.with_name(self.directory.name + ".log")

    def arguments(self, resume: bool) -> list[str]:
        """Return what ``fedgh-train`` gets, to begin or to go on."""
        path = "'" + str(self.directory).replace("\\", "\\\\").replace("'", "\\'") + "'"
        return [f"resume={path}"] if resume else [*self.overrides, f"hydra.run.dir={path}"]


@dataclass(frozen=True)
class State:
    """What a directory holds.

    Attributes:
        kind: ``new``, ``finished``, ``resumable``, or ``other`` (a run with other settings).
        differences: Of another run, ``key=stored instead of wanted``.
    """

    kind: str
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        status: ``finished`` (was so before), ``done``, ``failed``, ``stopped``, ``not started``, ``elsewhere`` (another
            process runs it).
        message: Why, where that needs saying.
    """

    job: Job
    status: str
    message: str = ""


def state_of(directory: Path, wanted: Mapping[str, Any]) -> State:
    """Tell whether a directory holds the wanted run, and how far it is.

    Args:
        directory: Need not exist.
        wanted: The resolved config of the run, nested.

    Raises:
        DataError: If its ``config.yaml`` or ``summary.json`` cannot be read.
    """
    config_file, summary_file = directory / "config.yaml", directory / "summary.json"
    if not config_file.is_file():
        return State("new")
    try:
        stored = yaml.safe_load(config_file.read_text())
        rounds = json.loads(summary_file.read_text())["rounds"] if summary_file.is_file() else 0
        if not isinstance(stored, Mapping):
            raise ValueError(f"{config_file.name} holds no settings")
        different = tuple(differences(stored, wanted))
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"run {directory} cannot be read: {why}; remove it to run it again") from error
    if different:
        return State("other", different)
    if rounds >= wanted["num_rounds"]:
        return State("finished")
    return State("resumable" if any((directory / "checkpoints").glob(PATTERN)) else "new")


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the settings that differ; not those that only one of two versions of the program has."""
    for key in stored:
        name = f"{prefix}{key}"
        if key not in wanted or name in NOT_COMPARED:
            continue
        ours, theirs = wanted[key], stored[key]
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from differences(theirs, ours, f"{name}.")
        elif ours != theirs:
            yield f"{name}={_short(theirs)} instead of {_short(ours)}"


def _short(value: Any) -> str:
    return "{...}" if isinstance(value, Mapping) else str(value)


def run_jobs(
    jobs: Sequence[Job], resume: Callable[[Job], bool], workers: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Run jobs, some at once, each in its own process; a failed one does not stop the others.

    The first Ctrl-C lets every run finish its round and keep a checkpoint, the second abandons the rounds.

    Args:
        jobs: In the order in which they are started.
        resume: Whether a job goes on from its checkpoint; asked when it is started.
        workers: Processes at once; they share the processor's cores.
        say: Takes a line about every start and end.

    Returns:
        One outcome a job, in the order of ``jobs``.
    """
    waiting, running, outcomes = list(jobs), list[_Process](), dict[str, Outcome]()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))
    with _forwarding(running) as asked:
        while (waiting and not asked) or running:
            while waiting and not asked and len(running) < workers:
                job = waiting.pop(0)
                process = _start(job, resume, environment)
                if process is None:
                    outcomes[job.name] = Outcome(job, "elsewhere", "another process is running it")
                else:
                    running.append(process)
                    say(f"{'resuming' if process.resumed else 'running':9} {job.name}")
            time.sleep(POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                outcome = outcomes[process.job.name] = process.outcome(bool(asked))
                say(f"{outcome.status:9} {process.job.name} ({len(outcomes)} of {len(jobs)})")
                if outcome.message:
                    say(f"          {outcome.message}")
    return [outcomes.get(job.name, Outcome(job, "not started")) for job in jobs]


@dataclass(frozen=True)
class _Process:
    job: Job
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    offset: int
    resumed: bool

    def outcome(self, asked: bool) -> Outcome:
        self.log.close()
        code = self.popen.returncode
        if code == 0:
            return Outcome(self.job, "done")
        if asked:
            return Outcome(self.job, "stopped")
        text = self.job.log.read_bytes()[self.offset :].decode(errors="replace")
        why = f"ended by signal {-code}; " if code < 0 else ""
        return Outcome(self.job, "failed", f"{why}{last_error(text)} (all of it: {self.job.log})")


def _start(job: Job, resume: Callable[[Job], bool], environment: Mapping[str, str]) -> _Process | None:
    """Start a job, or return None if another process has it.

    Its log is locked for as long as the run lives, also if this process should be killed.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError:  # a file system without locks
        pass
    resumed = resume(job)
    popen = subprocess.Popen(
        [sys.executable, *PROGRAM, *job.arguments(resumed)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )
    return _Process(job, popen, log, log.tell(), resumed)


def last_error(text: str) -> str:
    """Return the line of a run's output that says what went wrong."""
    errors = re.findall(r"^error: .*$", text, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return str(errors[-1]) if errors else (lines[-1] if lines else "it printed nothing")


@contextmanager
def _forwarding(running: Sequence[_Process]) -> Iterator[list[int]]:
    """Pass requests to stop on to the processes; yields the list of signals received."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        again = number == signal.SIGINT and bool(received)
        received.append(number)
        for process in running:
            process.popen.send_signal(signal.SIGTERM if again or number != signal.SIGINT else signal.SIGINT)

    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
