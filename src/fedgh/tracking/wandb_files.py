"""Runs as W&B gives them out; files are read without an account or a network.

- ``run-<id>.wandb``, the file that W&B writes beside a run (below ``wandb/``), online or offline: config, every round
  and closing numbers. What it lacks are the conflict tables of the run's directory.
- A CSV exported from the table of runs of a W&B project, all columns shown: a line a run with its config and closing
  numbers, but no rounds; so it fills tables, not curves, and says nothing of seconds, commit or hardware.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgh.core.errors import DataError
from fedgh.storage.run import Run, check_settings, flatten
from fedgh.tracking import offline

CLOSING = ("rounds", "final/acc", "last10/acc_mean", "last10/acc_best", "final/conflict_ratio", "mean/conflict_ratio")
"""Numbers of ``summary.json``, which W&B keeps as the run's summary."""


def read_offline(files: Sequence[Path]) -> list[Run]:
    """Read the ``.wandb`` files of one run; a resumed run has several, oldest first.

    Raises:
        DataError: If one cannot be read, or is not of our making.
    """
    config: dict[str, Any] = {}
    rounds: dict[int, dict[str, float]] = {}
    cosines: dict[int, list[float]] = {}
    summary: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    try:
        for file in files:
            found = offline.contents(file)
            config |= found.config
            summary |= found.summary
            environment |= found.environment
            for row in (row for row in found.rows if "round" in row):
                number = int(row["round"])
                rounds[number] = {**_numbers(row), "round": number}
                if "conflict/cosine.values" in row:
                    cosines[number] = row["conflict/cosine.values"]
        settings = flatten({key: value for key, value in config.items() if key != "_wandb"})
        check_settings(settings, "its config")
    except (ValueError, OSError) as error:
        raise DataError(f"{files[-1]} cannot be read: {error}") from error
    provenance = {
        "commit": environment.get("commit"),
        "device": environment.get("gpu", "cpu"),
        "cpu": environment.get("cpu"),
        "command": environment.get("command"),
    }
    known = {key: value for key, value in provenance.items() if value is not None}
    rows = [rounds[number] for number in sorted(rounds)]
    return [Run(files[-1], settings, _closing(summary), known, rows, cosines)]


def read_export(file: Path) -> list[Run]:
    """Read a CSV exported from W&B's table of runs; a line that is no run of ours is left out.

    Raises:
        DataError: If it cannot be read, or columns are missing.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            table = csv.DictReader(text)
            lines, columns = list(table), table.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    needed = ("Name", "seed", "num_rounds", "algorithm._target_", "aggregator._target_", "rounds", "final/acc")
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{file} is not an export of W&B's table of runs with all its columns: it lacks {', '.join(missing)}; show "
            "all columns of the table, then export it as CSV"
        )
    runs = []
    for line in lines:
        values = {key: _value(cell) for key, cell in line.items() if key and cell}
        if "num_rounds" in values and "algorithm._target_" in values:
            settings = {key: value for key, value in values.items() if _is_setting(key)}
            runs.append(Run(file / str(line["Name"]), settings, _closing(values), {}, []))
    return runs


def read_project(found: Iterable[Any]) -> list[Run]:
    """Read the runs of a W&B project, as its public interface gives them; closing numbers only, no rounds.

    Args:
        found: Objects with ``config``, ``summary_metrics`` and ``url``; one that is no run of ours is left out.
    """
    runs = []
    for run in found:
        settings = flatten({key: value for key, value in run.config.items() if key != "_wandb"})
        try:
            check_settings(settings, "its config")
        except ValueError:
            continue  # a sweep's table, or something else that was logged into the project
        runs.append(Run(Path(run.url), settings, _closing(run.summary_metrics), {}, []))
    return runs


def _is_setting(column: str) -> bool:
    """Tell a key of the config from W&B's own columns, written large, and from what was logged."""
    return (
        column.islower() and "/" not in column and column[0] != "_" and column not in ("round", "rounds", "partition")
    )


def _value(cell: str) -> Any:
    """Return what a cell says; a word is itself."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _closing(summary: Mapping[str, Any]) -> dict[str, float]:
    numbers = _numbers(summary)
    return {key: numbers[key] for key in CLOSING if key in numbers}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a logged row; pictures, histograms and what is not finite are left out."""
    kept = {key: value for key, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {key: float(value) for key, value in kept.items() if math.isfinite(value)}
