"""What clients keep between their rounds: in memory while it is small, a file per client and round beyond that.

A checkpoint with the states of all clients inside grows with their number: 10,000 of half a million parameters would be
20 GB, every round. So each state is a file below ``<run>/clients``, written once and never changed, and a checkpoint
names them in 16 bytes a client. Files that no kept checkpoint names are removed after a new one has its name, so a kill
at any moment leaves whole checkpoints with all their files, and at most some files too many, which go next time.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedgh.core.errors import CheckpointError
from fedgh.core.types import ClientState
from fedgh.storage.durable import replace_file, sync, sync_all

MEMORY_LIMIT = 64 << 20
"""Bytes: a checkpoint with that much inside is written in a few tenths of a second, and many small states are one file
rather than thousands."""

_NAME = re.compile(r"\d{6,}@\d{6,}-[0-9a-f]{8}\.safetensors|\..*\.safetensors\.tmp")


class Version(NamedTuple):
    """Which of a client's files: that of the round (finished, from 1) which wrote it, with this CRC-32."""

    round_index: int
    checksum: int


class ClientStore(Mapping[int, ClientState]):
    """Client states by client id, on the CPU. Nothing changes a store: :meth:`updated` returns another one.

    Keeps at most ``memory_limit`` bytes of states in memory: all of them, or the ones that were read last. Names are in
    alphabetical order, wherever a state comes from. States that are handed out are shared; copy before you write.

    Args:
        folder: Of the files; made when the first one is written.
        memory_limit: In bytes. What takes more in all goes to files, for good.
    """

    def __init__(self, folder: Path, memory_limit: int = MEMORY_LIMIT) -> None:
        self.memory_limit = memory_limit
        self.resident: Mapping[int, ClientState] = {}
        self.versions: Mapping[int, Version] = {}
        self._files = _Files(folder, memory_limit)

    @classmethod
    def of(cls, clients: Mapping[int, ClientState], folder: Path, memory_limit: int = MEMORY_LIMIT) -> ClientStore:
        """Return a store that holds what a mapping, or a store with files in the same folder, holds."""
        store = cls(folder, memory_limit)
        if isinstance(clients, ClientStore):
            store.resident, store.versions = clients.resident, clients.versions
        else:
            store.resident = {client_id: _on_cpu(state) for client_id, state in clients.items()}
        return store

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._files.folder

    def __getitem__(self, client_id: int) -> ClientState:
        if client_id in self.resident:
            return self.resident[client_id]
        return self._files.read(client_id, self.versions[client_id])

    def __contains__(self, client_id: object) -> bool:
        return client_id in self.resident or client_id in self.versions

    def __iter__(self) -> Iterator[int]:
        yield from self.resident
        yield from self.versions

    def __len__(self) -> int:
        return len(self.resident) + len(self.versions)

    def updated(self, states: Mapping[int, ClientState], round_index: int) -> ClientStore:
        """Return the store with the states that these clients have after a round; this one stays as it is.

        Args:
            states: New states by client id, on any device; names and shapes as they like.
            round_index: Rounds finished with it, from 1.

        Raises:
            CheckpointError: If a state holds something else than dense real tensors.
            StorageError: If they cannot be written.
        """
        for client_id, state in states.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
                    raise CheckpointError(
                        f"the state of client {client_id} holds a {type(value).__name__} as {name}; what an algorithm "
                        "keeps for a client must be dense real tensors by name, for instance torch.tensor(...)"
                    )
        store = copy(self)
        resident = {**self.resident, **{client_id: _on_cpu(state) for client_id, state in states.items()}}
        if self.versions or sum(map(_size, resident.values())) > self.memory_limit:
            written = {client_id: self._files.write(client_id, round_index, s) for client_id, s in resident.items()}
            store.resident, store.versions = {}, {**self.versions, **written}
        else:
            store.resident = resident
        return store

    def sync(self) -> None:
        """Wait until every file is on the disk; to be done before a checkpoint names them."""
        self._files.sync(self.names())

    def names(self) -> set[str]:
        """Return the names of its files."""
        return {_name(client_id, version) for client_id, version in self.versions.items()}

    def check(self) -> None:
        """Read all files.

        Raises:
            CheckpointError: If one is missing, or not what was written.
        """
        everyone, threads = list(self.versions.items()), 8
        with ThreadPoolExecutor(threads) as pool:  # checksums are computed side by side
            list(pool.map(self._files.check, (everyone[first::threads] for first in range(threads))))

    def remove_others(self, names: Collection[str]) -> int:
        """Remove the files that neither this store nor ``names`` names; return how many."""
        return self._files.remove_all_but(self.names().union(names))

    def to_checkpoint(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the states that are in memory, and 16 bytes a file."""
        rounds = [version.round_index for version in self.versions.values()]
        checksums = [version.checksum for version in self.versions.values()]
        return {
            "resident": dict(self.resident),
            "ids": torch.tensor(list(self.versions), dtype=torch.int32),
            "rounds": torch.tensor(rounds, dtype=torch.int32),
            "checksums": torch.tensor(checksums, dtype=torch.int64),
        }

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], folder: Path) -> ClientStore:
        """Return the store that :meth:`to_checkpoint` was asked of; its files are not read yet."""
        store = cls(folder)
        store.resident = content["resident"]
        columns = (content[name].tolist() for name in ("ids", "rounds", "checksums"))
        store.versions = {client_id: Version(*version) for client_id, *version in zip(*columns, strict=True)}
        return store


def update_clients(
    clients: Mapping[int, ClientState], states: Mapping[int, ClientState], round_index: int
) -> Mapping[int, ClientState]:
    """Return client states after a round, be they in a store or, as in notebooks and tests, in a plain mapping."""
    if isinstance(clients, ClientStore):
        return clients.updated(states, round_index)
    return {**clients, **states}


class _Files:
    """The files of a run's client states, the same for all its stores; remembers nothing that is not on the disk."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        self.folder, self.cache_bytes = folder, cache_bytes
        self._cache: OrderedDict[str, ClientState] = OrderedDict()  # the one read last is the last
        self._unsynced: set[str] = set()

    def write(self, client_id: int, round_index: int, state: ClientState) -> Version:
        content = save(state)
        version = Version(round_index, zlib.crc32(content))
        name = _name(client_id, version)
        replace_file(self.folder / name, content)
        self._unsynced.add(name)
        return version

    def read(self, client_id: int, version: Version) -> ClientState:
        name = _name(client_id, version)
        if name not in self._cache:
            try:
                content = (self.folder / name).read_bytes()
            except OSError as error:
                raise self._missing(client_id, name, error) from error
            if zlib.crc32(content) != version.checksum:
                raise self._damaged(client_id, name)
            self._cache[name] = _sorted(load(content))
            while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self.cache_bytes:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def check(self, versions: Iterable[tuple[int, Version]]) -> None:
        for client_id, version in versions:
            name, checksum = _name(client_id, version), 0
            try:
                with (self.folder / name).open("rb") as file:
                    while piece := file.read(1 << 20):
                        checksum = zlib.crc32(piece, checksum)
            except OSError as error:
                raise self._missing(client_id, name, error) from error
            if checksum != version.checksum:
                raise self._damaged(client_id, name)

    def sync(self, names: set[str]) -> None:
        fresh = self._unsynced & names
        if fresh:
            sync_all(self.folder / name for name in fresh)
            sync(self.folder)
            sync(self.folder.parent)
            self._unsynced -= fresh

    def remove_all_but(self, names: Collection[str]) -> int:
        if not self.folder.is_dir():
            return 0
        others = [name for name in os.listdir(self.folder) if _NAME.fullmatch(name) and name not in names]
        for name in others:
            (self.folder / name).unlink(missing_ok=True)
        self._unsynced.difference_update(others)
        return len(others)

    def _missing(self, client_id: int, name: str, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"the state of client {client_id} cannot be read from {self.folder / name}: {error.strerror or error}; a "
            "run directory that is moved or copied takes its folder clients/ along"
        )

    def _damaged(self, client_id: int, name: str) -> CheckpointError:
        return CheckpointError(f"the state of client {client_id} in {self.folder / name} is damaged")


def _name(client_id: int, version: Version) -> str:
    """Return a file's name; the checksum is part of it, so that no two contents ever share one."""
    return f"{client_id:06d}@{version.round_index:06d}-{version.checksum:08x}.safetensors"


def _on_cpu(state: ClientState) -> ClientState:
    """Return a state on the CPU whose tensors own what they show: no view of a cohort's stacked tensor."""
    own: ClientState = {}
    for name, tensor in _sorted(state).items():
        there = tensor.detach().cpu().contiguous()
        storage = there.untyped_storage()
        shared = any(storage.data_ptr() == other.untyped_storage().data_ptr() for other in own.values())
        own[name] = there.clone() if shared or storage.nbytes() != there.nbytes else there
    return own


def _sorted(state: Mapping[str, Tensor]) -> ClientState:
    return {name: state[name] for name in sorted(state)}


def _size(state: ClientState) -> int:
    return sum(tensor.nbytes for tensor in state.values())
