"""What the directory of a run holds, and how that compares with the run that is wanted there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedgh.core.errors import DataError
from fedgh.storage.claim import PATTERN

NOT_COMPARED = (
    *("paths", "name", "tags", "task_name", "resume", "logger", "callback", "checkpoint", "trainer", "executor"),
    *("sweep", "trust", "evaluation.batch_size"),
    *("dataset.root", "dataset.images.root", "dataset.cache", "dataset.download"),
)
"""Settings that do not make another run: where things are, what is recorded, and how fast."""


@dataclass(frozen=True)
class State:
    """What a directory holds.

    Attributes:
        kind: ``new``, ``finished``, ``resumable``, or ``other`` (a run with other settings).
        differences: Of another run, ``key=stored instead of wanted``.
    """

    kind: str
    differences: tuple[str, ...] = ()


def state_of(directory: Path, wanted: Mapping[str, Any]) -> State:
    """Tell whether a directory holds the wanted run, and how far it is.

    Args:
        directory: Need not exist.
        wanted: The resolved config of the run, nested.

    Raises:
        DataError: If its ``config.yaml`` or ``summary.json`` cannot be read.
    """
    config_file, summary_file = directory / "config.yaml", directory / "summary.json"
    begun = any((directory / "checkpoints").glob(PATTERN))
    if not config_file.is_file():  # which is written after the first checkpoint
        return State("resumable" if begun else "new")
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
    return State("resumable" if begun else "new")


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
