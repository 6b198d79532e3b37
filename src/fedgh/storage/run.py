"""One run, read back from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fedgh.core.errors import DataError
from fedgh.storage.csv_table import read_csv

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
IGNORED = (
    "seed",
    "paths.",
    "logger.",
    "tags",
    "resume",
    "sweep.",
    "trainer.",
    "checkpoint.",
    "callback.",
    "executor.",
    "task_name",
    "name",
    "dataset.root",
    "dataset.images.root",
    "dataset.cache",
    "dataset.download",
)
"""Settings that do not change what is computed, or that seeds are averaged over."""
COUNTED = ("trainer.precision", "executor.row_dtype")
"""Of these, those that do."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: Its directory, or the W&B file it was read from.
        settings: Its resolved config as flat keys, ``{"algorithm.local_epochs": 5, ...}``.
        summary: Closing numbers.
        provenance: Commit, versions, hardware, command; what is not known is left out.
        rows: One mapping of metrics per round; empty where only the closing numbers are known.
        cosines: Pairs of clients per bin of cosine, by round, as W&B logged them; a directory has tables instead.
    """

    path: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, float]
    provenance: Mapping[str, Any]
    rows: list[dict[str, float]]
    cosines: Mapping[int, Sequence[float]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it ran all its rounds."""
        return bool(self.summary.get("rounds", 0) >= self.settings["num_rounds"])

    @property
    def seed(self) -> int:
        """Of everything that was drawn."""
        return int(self.settings["seed"])

    def curve(self, metric: str) -> list[float]:
        """Return a metric per round; NaN where it was not measured."""
        return [row.get(metric, float("nan")) for row in self.rows]

    def outcome(self) -> dict[str, Any]:
        """Return the settings that decide what is computed, without the seed; numbers as floats, nothing empty."""
        kept = {}
        for key, value in self.settings.items():
            if value not in (None, "", []) and (key in COUNTED or not key.startswith(IGNORED)):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                kept[key] = float(value) if number else value
        return kept

    def left_empty(self) -> list[str]:
        """Return the settings that :meth:`outcome` would have, but that are set to nothing."""
        empty = [key for key, value in self.settings.items() if value in (None, "", [])]
        return [key for key in empty if key in COUNTED or not key.startswith(IGNORED)]


def open_run(directory: Path) -> Run:
    """Return a run in whatever state it is; without a summary or any round yet, those are empty.

    Raises:
        DataError: If the directory is not that of a run, or a file of it cannot be read.
    """
    if not directory.is_dir():
        raise DataError(f"run={directory} is not a directory; expected a run such as logs/train/runs/<time>")
    if not (directory / "config.yaml").is_file():
        raise DataError(
            f"run={directory} is not a run: it has no config.yaml, as fedgh-train writes it; expected a directory such "
            "as logs/train/runs/<time>; for a folder of runs type runs=<folder>"
        )
    try:
        settings = flatten(yaml.load((directory / "config.yaml").read_text(), Loader=LOADER))
        summary, provenance = (_json(directory / name) for name in ("summary.json", "provenance.json"))
        table = directory / "metrics.csv"
        rows = read_csv(table) if table.is_file() else []
        check_settings(settings, "config.yaml")
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"run {directory} cannot be read: {error}; was it written by fedgh-train?") from error
    return Run(directory, settings, summary, provenance, rows)


def aligned(runs: Iterable[Run], metric: str) -> tuple[list[int], NDArray[np.float64]] | None:
    """Return a metric over the runs that have it, for the rounds common to them; None where none has.

    Returns:
        Rounds, ascending; and values, ``(runs, rounds)``.
    """
    tables = [{row["round"]: row[metric] for row in run.rows if metric in row} for run in runs]
    tables = [table for table in tables if table]
    if not tables:
        return None
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    return [int(number) for number in rounds], np.array([[table[number] for number in rounds] for table in tables])


def check_settings(settings: Mapping[str, Any], origin: str) -> None:
    """Refuse settings that lack what every run of ours has.

    Raises:
        ValueError: Naming what is missing.
    """
    missing = {"num_rounds", "seed", "algorithm._target_", "aggregator._target_"} - settings.keys()
    if missing:
        raise ValueError(f"{origin} lacks {', '.join(sorted(missing))}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold a mapping")
    return content
