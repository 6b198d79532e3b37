"""Checkpoints that survive a kill at any moment: written aside, synced, renamed; the last two are kept.

Client states beyond some size are files of their own in ``clients/`` beside the folder of the checkpoints, which name
them; see :mod:`fedgh.storage.client_store`. What is written before what:

1. the files of the clients that trained, while the round is on; synced before
2. the checkpoint that names them, which gets its name when it is whole and synced; then
3. checkpoints too old are removed, and then
4. the client files that no checkpoint names any more.
"""

from __future__ import annotations

import logging
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fedgh.core.errors import CheckpointError, StorageError
from fedgh.core.flat import FlatModel
from fedgh.core.types import ServerState
from fedgh.storage.claim import PATTERN as PATTERN
from fedgh.storage.claim import run_of as run_of
from fedgh.storage.client_store import ClientStore
from fedgh.storage.durable import cause_of, sync
from fedgh.storage.plain import NotPlainError, from_plain, to_plain

log = logging.getLogger(__name__)

VERSION = 2
READABLE = (1, 2)
"""Format versions; 1 had all client states inside."""


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
        recorded: Second copies of what was recorded, by their last round; see :mod:`fedgh.storage.second_copy`.
    """

    server: ServerState
    config: str
    wandb_id: str
    layout: dict[str, list[int]]
    dataset: str
    partition: str
    callbacks: dict[str, Any] = field(default_factory=dict)
    recorded: tuple[int, ...] = ()


def layout_of(model: FlatModel) -> dict[str, list[int]]:
    """Return name and shape of every parameter."""
    return {block.name: list(block.shape) for block in model.blocks}


def save(checkpoint: Checkpoint, folder: Path, keep: int = 2) -> Path:
    """Write ``round_<t>.ckpt`` so that a reader sees either all of it or nothing.

    It and the ones before it are kept, so many in all; older ones are removed, and those of later rounds, which a
    continuation has left that was abandoned for this one.

    Raises:
        CheckpointError: If a callback, or the server's state, holds what could not be read back.
        StorageError: If the folder cannot be written to.
    """
    path = folder / f"round_{checkpoint.server.round_index:06d}.ckpt"
    aside, clients = path.with_suffix(".tmp"), checkpoint.server.clients
    content = {
        "version": VERSION,
        "server": _server_content(checkpoint.server),
        "callbacks": _callbacks_content(checkpoint.callbacks),
        "recorded": torch.tensor(checkpoint.recorded, dtype=torch.int32),
        **{k: getattr(checkpoint, k) for k in ("config", "wandb_id", "layout", "dataset", "partition")},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(clients, ClientStore):
            clients.sync()
        with aside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(folder)
    except (OSError, RuntimeError) as error:  # PyTorch's archive writer hides the cause in a RuntimeError's context
        with suppress(OSError):
            aside.unlink()
        raise StorageError(f"cannot write checkpoint {path}: {cause_of(error)}") from error
    kept = [old for old in sorted(folder.glob(PATTERN)) if old.name <= path.name][-keep:]
    for old in folder.glob(PATTERN):
        if old not in kept:
            old.unlink()
    if isinstance(clients, ClientStore):
        remove_leftovers(folder, clients)
    return path


def client_folder(folder: Path) -> Path:
    """Return where the client states are that the checkpoints of a folder name: beside it, in the run's directory."""
    return folder.absolute().parent / "clients"


def remove_leftovers(folder: Path, clients: ClientStore) -> None:
    """Remove what killed processes have left: halves of checkpoints, and client files that no checkpoint names.

    Nothing is removed while one of the kept checkpoints cannot be read: it might be readable again tomorrow.

    Args:
        folder: Of the checkpoints; nobody else writes there.
        clients: The client states of the newest.
    """
    for half in folder.glob("round_*.tmp"):
        half.unlink(missing_ok=True)
    if not clients.folder.is_dir():
        return
    names = set[str]()
    for path in folder.glob(PATTERN):
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["server"]["clients"]
            names |= ClientStore.from_checkpoint(kept, clients.folder).names() if "resident" in kept else set()
        except Exception:  # as in load
            return
    sync(folder)  # or a power cut might bring back a checkpoint without the files that it names
    clients.remove_others(names)


def _server_content(server: ServerState) -> dict[str, Any]:
    clients, others = server.clients, replace(server, clients={})
    try:
        content: dict[str, Any] = to_plain(others)
        content["clients"] = clients.to_checkpoint() if isinstance(clients, ClientStore) else to_plain(clients)
    except NotPlainError as error:
        raise CheckpointError(
            f"the server's {error.path} is a {error.kind}, which a checkpoint cannot give back; what an aggregator, a "
            "server optimizer or an algorithm keeps must be tensors by name"
        ) from error
    return content


def _callbacks_content(memories: dict[str, Any]) -> dict[str, Any]:
    for name, memory in memories.items():
        try:
            memories = {**memories, name: to_plain(memory)}
        except NotPlainError as error:
            where = f"under {error.path}" if error.path else "as a whole"
            raise CheckpointError(
                f"callback {name} remembers {where} a {error.kind}, which a checkpoint cannot give back as it is; let "
                "its memory() return tensors and plain values: torch.from_numpy(...), float(...), dict(...)"
            ) from error
    return memories


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, tensors and plain values only.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another version, or a client state is that it names.
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
    if content.get("version") not in READABLE:
        raise CheckpointError(
            f"checkpoint {path} has format version {content.get('version')}, this program reads versions "
            f"{' and '.join(map(str, READABLE))}; update it"
        )
    try:
        clients = content["server"].pop("clients")
        server: ServerState = from_plain(ServerState, content["server"])
        if "resident" in clients:
            clients = ClientStore.from_checkpoint(clients, client_folder(path.parent))
            clients.check()
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} cannot be used: {error}") from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(
        server=replace(server, clients=clients),
        **{k: content[k] for k in ("config", "wandb_id", "layout", "dataset", "partition")},
        callbacks=content.get("callbacks", {}),  # of a run from before they remembered anything
        recorded=tuple(content["recorded"].tolist() if "recorded" in content else ()),
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
