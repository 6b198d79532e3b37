"""What a command costs before its first round: processor time, which another's load moves less than the clock's."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

COMMANDS = {
    "fedgh-train --help": ("--help",),
    "a misspelt key": ("num_round=3",),
    "a count of zero": ("num_rounds=0",),
    "a wrong value of a method": ("algorithm.local_epochs=many",),
    "one round on digits, logger=csv": ("num_rounds=1", "logger=csv"),
}


def start_up(bench: Any) -> Iterator[tuple[str, str, str]]:
    """Help, three refusals and a whole run of one round, each in a process of its own."""
    for name, words in COMMANDS.items():
        seconds = statistics.median(processor_seconds(*words) for _ in range(bench.pairs))
        yield name, f"{seconds:.2f} s", "of processor time, Python's start included"


def processor_seconds(*words: str) -> float:
    """Return the user and system seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with TemporaryDirectory() as folder:
        run_dir = f"hydra.run.dir={Path(folder, 'run')}"
        command = [sys.executable, "-m", "fedgh.cli.train", *words, *([] if words[0][0] == "-" else [run_dir])]
        subprocess.run(command, capture_output=True, check=False, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
