"""Checkpoints that survive a kill at any moment: written aside, synced, renamed; the last two are kept."""

from __future__ import annotations

import logging
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedgh.core.errors import CheckpointError
from fedgh.core.flat import FlatModel
from fedgh.core.types import ServerState

log = logging.getLogger(__name__)

VERSION = 1
PATTERN = "round_*.ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """A federation between two rounds.

    Attributes:
        server: Server state, with the client states.
        config: The run's resolved config as YAML.
        wandb_id: Id of the W&B run, or empty.
        layout: Name and shape of every parameter, to tell another model.
        dataset: Fingerprint of the data set.
        partition: Hash of the partition.
        callbacks: What callbacks remember, by the name of their class; whatever it is, of tensors and plain values.
    """

    server: ServerState
    config: str
    wandb_id: str
    layout: dict[str, list[int]]
    dataset: str
    partition: str
    callbacks: dict[str, Any] = field(default_factory=dict)


def layout_of(model: FlatModel) -> dict[str, list[int]]:
    """Return name and shape of every parameter."""
    return {block.name: list(block.shape) for block in model.blocks}


def save(checkpoint: Checkpoint, folder: Path, keep: int = 2) -> Path:
    """Write ``round_<t>.ckpt`` so that a reader sees either all of it or nothing, and remove all but the newest.

    Raises:
        CheckpointError: If the folder cannot be written to.
    """
    path = folder / f"round_{checkpoint.server.round_index:06d}.ckpt"
    aside = path.with_suffix(".tmp")
    content = {
        "version": VERSION,
        "server": dict(vars(checkpoint.server)),
        **{k: getattr(checkpoint, k) for k in ("config", "wandb_id", "layout", "dataset", "partition", "callbacks")},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            aside.unlink()
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}; free space there or choose another folder with paths.log_dir=..."
        ) from error
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, tensors and plain values only.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; expected a file round_<t>.ckpt of a run directory")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is damaged in {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a cut or overwritten file fails in many ways inside zipfile and the unpickler
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {content.get('version')}, this program reads version {VERSION}"
        )
    return Checkpoint(
        server=ServerState(**content["server"]),
        **{k: content[k] for k in ("config", "wandb_id", "layout", "dataset", "partition")},
        callbacks=content.get("callbacks", {}),  # of a run from before they remembered anything
    )


def load_newest(folder: Path) -> tuple[Checkpoint, Path]:
    """Read the newest checkpoint of a folder that can be read; report each damaged one.

    Raises:
        CheckpointError: If there is none.
    """
    paths = sorted(folder.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            return load(path), path
        except CheckpointError as error:
            log.warning("%s; trying the one before it", error)
    found = f"{len(paths)} damaged files" if paths else "no file round_<t>.ckpt"
    raise CheckpointError(
        f"{folder} holds {found}; expected the checkpoints of a run directory such as logs/train/runs/<time>. "
        "Start the run again without resume=..."
    )


def check_fits(checkpoint: Checkpoint, path: Path, layout: dict[str, list[int]], dataset: str, partition: str) -> None:
    """Check that a checkpoint belongs to this model, data set and partition.

    Raises:
        CheckpointError: Naming what differs.
    """
    if checkpoint.layout != layout:
        different = sorted(k for k in {*checkpoint.layout, *layout} if checkpoint.layout.get(k) != layout.get(k))
        name = different[0]
        raise CheckpointError(
            f"checkpoint {path} is of another model: parameter {name} has shape "
            f"{checkpoint.layout.get(name)} there and {layout.get(name)} here; use the model=... and "
            "dataset=... it was made with"
        )
    for what, theirs, ours in (
        ("dataset", checkpoint.dataset, dataset),
        ("partition", checkpoint.partition, partition),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint {path} is of another {what}: fingerprint {theirs[:12]} there and {ours[:12]} here; the "
                f"files or the settings of the {what} have changed since"
            )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
