"""A sweep in two tables: what became of each job, and each setting's mean and spread over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from fedgh.report.seeds import Line, measures_of, seeds_table
from fedgh.report.seeds import text_of as text_of
from fedgh.report.seeds import write_csv as write_csv
from fedgh.storage.jobs import JobRecord
from fedgh.storage.portable import anonymous


def varied(jobs: Sequence[JobRecord]) -> list[str]:
    """Return the settings, but for the seed, that take more than one value over the jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings if key != "seed")
    return [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]


def jobs_table(jobs: Sequence[JobRecord]) -> list[Line]:
    """Return a line per job."""
    measures = measures_of([job.results for job in jobs])
    keys = dict.fromkeys([*varied(jobs), *(["seed"] if any("seed" in job.settings for job in jobs) else [])])
    return [
        {
            "job": job.number,
            **{key: job.settings.get(key, "") for key in keys},
            "status": job.status,
            **{name: job.results.get(key, nan) for name, key in measures.items()},
            "directory": anonymous(str(job.directory)),
            "error": job.error,
        }
        for job in jobs
    ]


def mean_over_seeds(jobs: Sequence[JobRecord]) -> list[Line]:
    """Return the table over seeds: a line per setting, as it was typed, with the jobs that are finished."""
    keys = varied(jobs)
    found: dict[tuple[str, ...], list[JobRecord]] = {}
    for job in jobs:
        found.setdefault(tuple(job.settings.get(key, "") for key in keys), []).append(job)
    return seeds_table(
        (dict(zip(keys, values, strict=True)), [job.results for job in alike if job.status == "finished"])
        for values, alike in found.items()
    )
