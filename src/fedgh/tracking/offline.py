"""Reads W&B's offline files, so that a resumed run logs no round twice and tests see what a user would sync.

An offline file is a sequence of protobuf records in LevelDB's log format: 32 KiB blocks of fragments, each with a
7-byte header (checksum, length, type). A file whose writer was killed ends in the middle of a record; what precedes it
is whole.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_FILE_HEADER = 7
_BLOCK = 32768
_FRAGMENT_HEADER = 7
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass
class Contents:
    """What one offline file says of its run.

    Attributes:
        config: As it was logged, nested.
        rows: The logged rows, in order; nested keys are joined by dots.
        summary: Closing values, by top-level key.
        environment: ``commit``, ``command``, ``cpu``, ``cpu_count`` and ``gpu``, as far as W&B recorded them.
    """

    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def contents(path: Path) -> Contents:
    """Read one ``run-<id>.wandb`` file as far as it is whole.

    Raises:
        ValueError: If it is no such file.
    """
    found = Contents()
    _read_into(found, path)
    return found


def _read_into(found: Contents, path: Path) -> None:
    """Add what a file says, record by record, so that what precedes a damaged one is there when this raises."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    for payload in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(payload)
        except DecodeError as error:
            raise ValueError("it is not an offline file of W&B") from error
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found.rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        elif kind in ("run", "config"):
            found.config |= _updates(record.run.config if kind == "run" else record.config)
        elif kind == "summary":
            found.summary |= _updates(record.summary)
        elif kind == "environment":
            found.environment |= _environment(record.environment)


def _updates(record: Any) -> dict[str, Any]:
    """Return the new values of top-level keys; parts of a picture or histogram are left out."""
    items = [item for item in record.update if len(item.nested_key) < 2]
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def _environment(seen: Any) -> dict[str, Any]:
    """Return what W&B recorded of commit, command and hardware; it sends them in several records."""
    told = {
        "commit": seen.git.commit,
        "command": " ".join([Path(seen.program).name, *seen.args]) if seen.program else "",
        "cpu": seen.cpu.model,
        "cpu_count": seen.cpu_count,
        "gpu": seen.gpu_type,
    }
    return {key: value for key, value in told.items() if value}


def history(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged rows of one ``run-<id>.wandb`` file, in order; nested keys are joined by dots."""
    yield from contents(path).rows


def offline_files(run_dir: Path, run_id: str) -> list[Path]:
    """Return the offline files of one W&B run below a run directory, oldest first."""
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))


def last_round(run_dir: Path, run_id: str) -> int:
    """Return the last round in a run's offline files, or -1; what follows a damaged record does not count."""
    found = Contents()
    for path in offline_files(run_dir, run_id):
        try:
            _read_into(found, path)
        except (ValueError, IndexError, OSError) as error:  # a flipped byte in a record, or in the text in it
            log.warning("%s is damaged (%s); the rounds that it has lost are logged again", path, error)
    return max((row["round"] for row in found.rows if "round" in row), default=-1)


def _records(data: bytes) -> Iterator[bytes]:
    position, partial = _FILE_HEADER, b""
    while position + _FRAGMENT_HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _FRAGMENT_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        start = position + _FRAGMENT_HEADER
        if kind == 0 or start + length > len(data):
            return
        fragment = data[start : start + length]
        partial = fragment if kind in (_FULL, _FIRST) else partial + fragment
        if kind in (_FULL, _LAST):
            yield partial
        position = start + length
