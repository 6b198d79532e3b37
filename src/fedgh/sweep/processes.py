"""A list of runs, each in a process and a directory of its own, some at once; a failed one does not stop the others.

Whether a run begins, goes on or is finished already is decided in its process, see :mod:`fedgh.sweep.job`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedgh.core.command import setting
from fedgh.core.machine import usable_cores
from fedgh.federation.stopping import HeldSignals
from fedgh.sweep.job import ELSEWHERE

PROGRAM = ("-m", "fedgh.cli.train")
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        name: For the reader.
        directory: Its own, absolute; its output goes to a file beside it, ``<directory>.log``.
        overrides: Arguments of ``fedgh-train``.
        begun: Whether there is a run in its directory that goes on; for what is printed.
    """

    name: str
    directory: Path
    overrides: tuple[str, ...]
    begun: bool = False

    @property
    def log(self) -> Path:
        """The file with everything that the run printed."""
        return self.directory.with_name(self.directory.name + ".log")

    @property
    def arguments(self) -> list[str]:
        """What somebody would give ``fedgh-train``, to begin or to go on."""
        if self.begun:
            return [setting("resume", self.directory)]
        return [*self.overrides, setting("hydra.run.dir", self.directory)]

    def start(self, environment: Mapping[str, str]) -> _Process:
        """Start the run in a process of its own, which begins it or goes on with it, whatever its directory holds."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = self.log.open("ab")
        popen = subprocess.Popen(
            [sys.executable, *PROGRAM, *self.overrides, setting("hydra.run.dir", self.directory), "sweep.resume=true"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        return _Process(self, popen, log, log.tell())


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


def run_processes(jobs: Sequence[Job], workers: int, say: Callable[[str], None]) -> list[Outcome]:
    """Run jobs, some at once, each in its own process.

    The first Ctrl-C lets every run finish its round and keep a checkpoint, the second abandons the rounds.

    Args:
        jobs: In the order in which they are started.
        workers: Processes at once; they share the processor's cores.
        say: Takes a line about every start and end.

    Returns:
        One outcome a job, in the order of ``jobs``.
    """
    waiting, running, outcomes = list(jobs), list[_Process](), dict[str, Outcome]()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))

    def pass_on(number: int, again: bool) -> None:
        gently = number == signal.SIGINT and not again
        for process in running:
            process.popen.send_signal(signal.SIGINT if gently else signal.SIGTERM)

    with HeldSignals(pass_on) as held:
        while (waiting and not held.noted) or running:
            while waiting and not held.noted and len(running) < workers:
                job = waiting.pop(0)
                running.append(job.start(environment))
                say(f"{'resuming' if job.begun else 'running':9} {job.name}")
            time.sleep(POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                outcome = outcomes[process.job.name] = process.outcome(bool(held.noted))
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

    def outcome(self, asked: bool) -> Outcome:
        self.log.close()
        code = self.popen.returncode
        if code == 0:
            return Outcome(self.job, "done")
        if code == ELSEWHERE:
            return Outcome(self.job, "elsewhere", "another process is running it")
        if asked:
            return Outcome(self.job, "stopped")
        text = self.job.log.read_bytes()[self.offset :].decode(errors="replace")
        why = f"ended by signal {-code}; " if code < 0 else ""
        return Outcome(self.job, "failed", f"{why}{last_error(text)} (all of it: {self.job.log})")


def last_error(text: str) -> str:
    """Return the line of a run's output that says what went wrong."""
    errors = re.findall(r"^error: .*$", text, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return str(errors[-1]) if errors else (lines[-1] if lines else "it printed nothing")
