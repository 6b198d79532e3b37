"""What client states on disk cost: 10,000 clients with half a million parameters each, 20 a round.

Needs 20 GB where temporary files go (``TMPDIR``), which is the disk that is measured.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from fedgh.core.types import ServerState
from fedgh.storage.checkpoint import Checkpoint, client_folder, load_newest, save
from fedgh.storage.client_store import ClientStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark import Bench, Row

CLIENTS, PARAMS, COHORT, ROUNDS = 10_000, 500_000, 20, 10


def client_states(bench: Bench) -> Iterator[Row]:
    """A round's states read and written, its checkpoint, a resume; and what stays in memory."""
    num_clients = max(10 * COHORT, round(bench.scale * CLIENTS))
    with TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        store, started = ClientStore(client_folder(folder)), time.perf_counter()
        for first in range(0, num_clients, 100):
            states = {k: {"c": torch.full((PARAMS,), float(k))} for k in range(first, min(first + 100, num_clients))}
            store = store.updated(states, 1)
        keep(store, 1, folder)
        yield f"{num_clients} clients, first states", f"{time.perf_counter() - started:.1f} s", f"{used(name):.1f} GB"
        before, rounds, saves = resident(), [], []
        for t in range(2, 2 + ROUNDS):
            ids = torch.randperm(num_clients, generator=torch.Generator().manual_seed(t))[:COHORT].tolist()
            started = time.perf_counter()
            store = store.updated({k: {"c": store[k]["c"] + 1} for k in ids}, t)
            written = time.perf_counter()
            keep(store, t, folder)
            rounds.append(written - started)
            saves.append(time.perf_counter() - written)
        yield (
            f"{COHORT} states read and written",
            f"{statistics.median(rounds):.3f} s a round",
            f"at most {max(rounds):.3f} s",
        )
        size = max(path.stat().st_size for path in folder.iterdir()) / 1e3
        yield "checkpoint that names them, synced", f"{statistics.median(saves):.3f} s", f"at most {max(saves):.3f} s"
        others = len(list(client_folder(folder).iterdir())) - num_clients
        yield "the checkpoint itself", f"{size:.0f} kB", f"{others} files for the one before it"
        yield "memory of these rounds", f"{(resident() - before) / 2**20:.0f} MiB", "states in all 64 MiB at most"
        started = time.perf_counter()
        load_newest(folder)
        yield "resume: every state read and checked", f"{time.perf_counter() - started:.1f} s", ""
        shutil.rmtree(folder)


def keep(store: ClientStore, round_index: int, folder: Path) -> None:
    """Write a checkpoint of little else."""
    empty = torch.zeros(0)
    server = ServerState(round_index, torch.zeros(PARAMS), empty, empty.long(), clients=store)
    save(Checkpoint(server, "", "", {}, "", ""), folder)


def used(folder: str) -> float:
    """Return what the files of a folder take, in GB."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
