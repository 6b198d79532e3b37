"""What a sweep's directory keeps of each of its jobs: ``.jobs/<number>.json``, written whoever runs the job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgh.storage.portable import from_home, restored, shareable, to_home

JOBS = ".jobs"
"""Where a sweep's directory keeps a record per job."""


@dataclass(frozen=True)
class JobRecord:
    """What became of a job.

    Attributes:
        number: From 0, in the order of the sweep.
        overrides: As the job had them.
        settings: The same by key.
        directory: Of its run.
        status: ``finished``, ``pruned``, ``failed``, ``stopped``, or ``running`` (also if it was killed).
        error: Why it failed, or by what it was stopped if not by its own leader.
        results: Closing numbers; empty unless finished.
    """

    number: int
    overrides: Sequence[str]
    settings: Mapping[str, str]
    directory: Path
    status: str
    error: str
    results: Mapping[str, float]


def write_job(
    sweep: Path, number: int, overrides: Sequence[str], directory: Path, status: str, error: str = ""
) -> None:
    """Record what has become of a job, all or nothing; arguments as of :class:`JobRecord`."""
    path = sweep / JOBS / f"{number:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    own, home = directory.absolute(), sweep.absolute()
    place = str(own.relative_to(home)) if own.is_relative_to(home) else to_home(str(directory))
    words = [shareable(word) for word in overrides]
    content: dict[str, Any] = {"job": number, "overrides": words, "directory": place}
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({**content, "status": status, "error": error}, indent=2) + "\n")
    aside.replace(path)


def read_jobs(sweep: Path) -> list[JobRecord]:
    """Return the records of a sweep's jobs as far as they have begun, in order."""
    jobs = []
    for path in sorted((sweep / JOBS).glob("[0-9]*.json")):
        content = json.loads(path.read_text())
        overrides = [restored(word) for word in content["overrides"]]
        pairs = (override.lstrip("+~").partition("=") for override in overrides)
        directory, status = sweep / from_home(content["directory"]), content["status"]
        results = closing(directory) if status == "finished" else {}
        settings = {key: value for key, _, value in pairs}
        jobs.append(JobRecord(content["job"], overrides, settings, directory, status, content["error"], results))
    return jobs


def closing(directory: Path) -> dict[str, float]:
    """Return the closing numbers of a run; empty if it has none."""
    path = directory / "summary.json"
    content: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    return content
