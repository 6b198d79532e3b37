"""A sweep in two tables: what became of each job, and each setting's mean and spread over its seeds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedgh.storage.jobs import JobRecord

MEASURES = {"accuracy": "final/acc", "last10": "last10/acc_mean", "conflict": "mean/conflict_ratio"}
"""Column -> key of ``summary.json``: test accuracy after the last round, its mean over the last ten, share of pairs in
conflict over all rounds."""

Line = dict[str, Any]


def varied(jobs: Sequence[JobRecord]) -> list[str]:
    """Return the settings, but for the seed, that take more than one value over the jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings if key != "seed")
    return [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]


def jobs_table(jobs: Sequence[JobRecord]) -> list[Line]:
    """Return a line per job."""
    keys = dict.fromkeys([*varied(jobs), *(["seed"] if any("seed" in job.settings for job in jobs) else [])])
    return [
        {
            "job": job.number,
            **{key: job.settings.get(key, "") for key in keys},
            "status": job.status,
            **{name: job.results.get(key, nan) for name, key in MEASURES.items()},
            "directory": str(job.directory),
            "error": job.error,
        }
        for job in jobs
    ]


def mean_over_seeds(jobs: Sequence[JobRecord]) -> list[Line]:
    """Return a line per setting: finished seeds, mean and standard deviation (n - 1; NaN for one) of each measure."""
    keys = varied(jobs)
    groups: dict[tuple[str, ...], list[JobRecord]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.settings.get(key, "") for key in keys), []).append(job)
    lines = []
    for setting, group in groups.items():
        line: Line = dict(zip(keys, setting, strict=True))
        line["seeds"] = sum(job.status == "finished" for job in group)
        for name, key in MEASURES.items():
            values = [job.results[key] for job in group if key in job.results]
            line[f"{name}_mean"] = mean(values) if values else nan
            line[f"{name}_sd"] = stdev(values) if len(values) > 1 else nan
        lines.append(line)
    return lines


def write_csv(table: Sequence[Line], path: Path) -> None:
    """Write lines of equal columns, all or nothing; numbers that are not known stay empty."""
    aside = path.with_suffix(".tmp")
    with aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in line.items()} for line in table)
    aside.replace(path)


def text_of(table: Sequence[Line]) -> str:
    """Return the table over seeds for a terminal: shares in percent, mean ± standard deviation."""
    keys = [key for key in table[0] if not key.endswith(("_mean", "_sd"))]
    lines = [[*keys, *(f"{name} (%)" for name in MEASURES)]]
    for line in table:
        measured = [_percent(line[f"{name}_mean"], line[f"{name}_sd"]) for name in MEASURES]
        lines.append([*(str(line[key]) for key in keys), *measured])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _percent(value: float, spread: float) -> str:
    if not isfinite(value):
        return "-"
    return f"{100 * value:.2f}" + (f" ± {100 * spread:.2f}" if isfinite(spread) else "")
