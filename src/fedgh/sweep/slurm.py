"""What SLURM knows of a sweep's jobs, asked of its controller: accounting (``sacct``) need not be there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedgh.storage.jobs import JOBS, read_jobs

_IDS = "slurm.json"
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
"""States that a job does not leave, unless it is queued again."""


def remember(sweep: Path, ids: Mapping[int, str]) -> None:
    """Keep SLURM's ids of jobs in the sweep's directory, by the jobs' numbers, beside those that are there."""
    path = sweep / JOBS / _IDS
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**remembered(sweep), **ids}
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({str(number): job_id for number, job_id in sorted(content.items())}, indent=2) + "\n")
    aside.replace(path)


def remembered(sweep: Path) -> dict[int, str]:
    """Return SLURM's ids of a sweep's jobs as far as they were ever given to it; of each job the last."""
    path = sweep / JOBS / _IDS
    content = json.loads(path.read_text()) if path.is_file() else {}
    return {int(number): str(job_id) for number, job_id in content.items()}


def states(ids: Iterable[str]) -> dict[str, str] | None:
    """Return the states of jobs such as ``12_3`` that SLURM still knows; it forgets one minutes after its end.

    Returns:
        For instance ``{"12_3": "RUNNING"}``; None if SLURM does not answer.
    """
    whole = sorted({job_id.partition("_")[0] for job_id in ids})
    if not whole:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(whole)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None
    lines = (line.strip().partition("|") for line in answer.stdout.splitlines() if line.strip())
    return {job_id: state for job_id, _, state in lines}


def alive(sweep: Path) -> dict[int, tuple[str, str]]:
    """Return id and state of the jobs of a sweep that SLURM runs or holds in its queue, by their numbers.

    Not those that have recorded their end and are only about to leave SLURM. Where SLURM does not answer these are all
    others, in state ``UNKNOWN``.
    """
    ended = {job.number for job in read_jobs(sweep) if job.status in ("finished", "pruned", "failed")}
    ids = {number: job_id for number, job_id in remembered(sweep).items() if number not in ended}
    found = states(ids.values())
    if found is None:
        return {number: (job_id, "UNKNOWN") for number, job_id in ids.items()}
    known = {number: (job_id, found[job_id]) for number, job_id in ids.items() if job_id in found}
    return {number: (job_id, state) for number, (job_id, state) in known.items() if state not in OVER}


def told(jobs: Mapping[int, tuple[str, str]]) -> list[str]:
    """Return what to print of jobs that go on in SLURM, as of :func:`alive`."""
    if not jobs:
        return []
    running = [number for number, (_, state) in jobs.items() if state not in ("PENDING", "REQUEUED")]
    parts = [
        f"{'job' if len(numbers) == 1 else 'jobs'} {', '.join(map(str, numbers))} {what}"
        for numbers, what in ((running, "still running"), ([n for n in jobs if n not in running], "still waiting"))
        if numbers
    ]
    whole = sorted({job_id.partition("_")[0] for job_id, _ in jobs.values()}, key=int)
    return [f"in SLURM        {', '.join(parts)}; they outlive this process, stop them: scancel {' '.join(whole)}"]
