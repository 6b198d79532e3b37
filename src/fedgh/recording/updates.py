"""Recordings: a round's updates and all that is needed to aggregate them again, one safetensors file a round."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedgh.core.errors import CheckpointError
from fedgh.core.flat import FlatModel
from fedgh.core.types import Cohort, ServerState
from fedgh.core.updates import Block, UpdateMatrix
from fedgh.federation.round import Federation, Round
from fedgh.storage.checkpoint import layout_of

VERSION = "1"
FOLDER = "recording"
PATTERN = "round_*.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SMALL = ("gram", "weights", "client_ids", "num_examples", "local_steps", "train_loss")


@dataclass(frozen=True)
class Recording:
    """One recorded round; row k of everything belongs to ``cohort.client_ids[k]``.

    Attributes:
        round: Rounds finished with this one, from 1, as in ``metrics.csv``.
        updates: The clients' updates, without those set aside, ``(clients, params)``.
        gram: Their Gram matrix as the run computed it, ``(clients, clients)`` float64.
        block_grams: The same per parameter block, ``(blocks, clients, clients)``, or ``gram`` alone where
            the run had no more.
        cohort: Ids, weights, losses, seed, and the index of the round (from 0).
        num_examples: n_k, ``(clients,)`` float64.
        local_steps: tau_k, ``(clients,)`` int64.
        before: Server state that the clients started from, without client states.
        buffers: Running statistics after the round, which no aggregation rule touches, ``(buffers,)``.
        counters: Integer buffers after the round, ``(counters,)`` int64.
        params_hash: Of the parameters after the round, under the rule of the run.
        dataset: Fingerprint of the data set.
        partition: Hash of the partition.
        config: The run's resolved config as YAML.
    """

    round: int
    updates: UpdateMatrix
    gram: Tensor
    block_grams: Tensor
    cohort: Cohort
    num_examples: Tensor
    local_steps: Tensor
    before: ServerState
    buffers: Tensor
    counters: Tensor
    params_hash: str
    dataset: str
    partition: str
    config: str


def recording_of(federation: Federation, before: ServerState, outcome: Round, config: str) -> Recording:
    """Return what is to be recorded of a round in which at least one client was left; nothing is copied."""
    result = outcome.result
    cohort = Cohort(
        *(result.client_ids, outcome.weights, result.train_loss, federation.seed, before.round_index),
        before.params,
    )
    return Recording(
        round=outcome.server.round_index,
        updates=result.updates,
        gram=outcome.gram,
        block_grams=outcome.block_grams,
        cohort=cohort,
        num_examples=result.num_examples,
        local_steps=result.local_steps,
        before=before,
        buffers=outcome.server.buffers,
        counters=outcome.server.counters,
        params_hash=hash_of(outcome.server.params),
        dataset=federation.dataset.fingerprint,
        partition=federation.partition.hash,
        config=config,
    )


def write(recording: Recording, folder: Path, dtype: torch.dtype) -> Path:
    """Write ``round_<t>.safetensors`` so that a reader sees either all of it or nothing.

    Args:
        recording: What to write.
        folder: Made where it is missing.
        dtype: Of the updates in the file, unless the run keeps them in a narrower one; everything else keeps its own.

    Raises:
        OSError: If the folder cannot be written to.
    """
    path = folder / f"round_{recording.round:06d}.safetensors"
    aside = path.with_suffix(".tmp")
    before, cohort = recording.before, recording.cohort
    tensors = {
        "updates": recording.updates.rows.to(narrower(recording.updates.rows.dtype, dtype)),
        "gram": recording.gram,
        "block_grams": recording.block_grams,
        "weights": cohort.weights,
        "client_ids": torch.tensor(cohort.client_ids),
        "num_examples": recording.num_examples,
        "local_steps": recording.local_steps,
        "train_loss": cohort.losses,
        **{f"before/{name}": getattr(before, name) for name in ("params", "buffers", "counters")},
        **{f"optimizer/{name}": tensor for name, tensor in before.optimizer.items()},
        **{f"aggregator/{name}": tensor for name, tensor in before.aggregator.items()},
        "after/buffers": recording.buffers,
        "after/counters": recording.counters,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blocks = [(b.name, b.start, b.stop, list(b.shape)) for b in recording.updates.blocks]
    metadata = {
        "format": "fedgh recording",
        "version": VERSION,
        "round": str(recording.round),
        "seed": str(cohort.seed),
        "blocks": json.dumps(blocks),
        **{name: getattr(recording, name) for name in ("params_hash", "dataset", "partition", "config")},
        "checksums": json.dumps({name: _checksum(tensor) for name, tensor in tensors.items()}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_unshared(tensors), aside, metadata)
        aside.chmod(folder.stat().st_mode & 0o666)  # safetensors makes it private; who sees the folder may read it
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(str(error)) from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def read(path: Path) -> Recording:
    """Read one recorded round; every tensor is checked against its checksum.

    Raises:
        CheckpointError: If the file is missing, damaged or no recording.
    """
    tensors, metadata = _read(path, None)
    blocks = tuple(Block(name, start, stop, torch.Size(shape)) for name, start, stop, shape in metadata["blocks"])
    before = ServerState(
        round_index=int(metadata["round"]) - 1,
        params=tensors["before/params"],
        buffers=tensors["before/buffers"],
        counters=tensors["before/counters"],
        optimizer=_below("optimizer/", tensors),
        aggregator=_below("aggregator/", tensors),
    )
    return Recording(
        round=int(metadata["round"]),
        updates=UpdateMatrix(tensors["updates"], blocks),
        cohort=_cohort(tensors, metadata),
        before=before,
        buffers=tensors["after/buffers"],
        counters=tensors["after/counters"],
        gram=tensors["gram"],
        block_grams=tensors["block_grams"],
        num_examples=tensors["num_examples"],
        local_steps=tensors["local_steps"],
        **{name: metadata[name] for name in ("params_hash", "dataset", "partition", "config")},
    )


def read_gram(path: Path) -> tuple[Tensor, Cohort]:
    """Read only the Gram matrix ``(clients, clients)`` and the cohort of a recorded round: kilobytes, not gigabytes.

    Raises:
        CheckpointError: If the file is missing, damaged or no recording.
    """
    tensors, metadata = _read(path, _SMALL)
    return tensors["gram"], _cohort(tensors, metadata)


def find(source: Path) -> list[Path]:
    """Return the recorded rounds of a run directory, of a folder, or the one file, in order.

    Raises:
        CheckpointError: If there is none.
    """
    if source.is_file():
        return [source]
    paths = sorted(source.glob(PATTERN)) or sorted((source / FOLDER).glob(PATTERN))
    if not paths:
        raise CheckpointError(
            f"recording={source} holds no file round_<t>.safetensors; record a run first: fedgh-train "
            "callback=record_updates callback.record_updates.every=10, then give its directory"
        )
    return paths


def check_fits(recording: Recording, path: Path, model: FlatModel, dataset: str) -> None:
    """Check that a recording belongs to this model and data set.

    Raises:
        CheckpointError: Naming what differs.
    """
    theirs, ours = {b.name: list(b.shape) for b in recording.updates.blocks}, layout_of(model)
    different = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if different:
        name = different[0]
        raise CheckpointError(
            f"recording {path} is of another model: parameter {name} has shape {theirs.get(name)} there and "
            f"{ours.get(name)} here; replay the recordings of one run at a time, with the code that made them"
        )
    if recording.dataset != dataset:
        raise CheckpointError(
            f"recording {path} is of another data set: fingerprint {recording.dataset[:12]} there and {dataset[:12]} "
            "here; the files of the data set have changed since, or the folder mixes recordings of several runs"
        )


def narrower(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """Return the type that takes less room."""
    return min(first, second, key=lambda dtype: dtype.itemsize)


def hash_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _read(path: Path, names: tuple[str, ...] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"there is no recording {path}; expected a file round_<t>.safetensors of a recorded run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if metadata.get("format") != "fedgh recording" or metadata.get("version") != VERSION:
                raise CheckpointError(
                    f"{path} is not a recording that this program reads (format {metadata.get('format')!r}, version "
                    f"{metadata.get('version')!r}, expected 'fedgh recording', {VERSION!r}); record the run again"
                )
            # copies: results to the last bit need memory aligned as the run had it, a mapped file is not
            tensors = {name: file.get_tensor(name).clone() for name in names or file.keys()}
        metadata = {**metadata, **{name: json.loads(metadata[name]) for name in ("blocks", "checksums")}}
        damaged = [name for name, tensor in tensors.items() if metadata["checksums"][name] != _checksum(tensor)]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"recording {path} is damaged or cut short ({error}); copy it again from where it was made, or move it "
            "out of the folder to replay the others"
        ) from error
    if damaged:
        raise CheckpointError(
            f"recording {path} is damaged: wrong checksum of {', '.join(damaged)}; copy it again from where it was "
            "made, or move it out of the folder to replay the others"
        )
    return tensors, metadata


def _cohort(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Cohort:
    return Cohort(
        client_ids=tuple(tensors["client_ids"].tolist()),
        weights=tensors["weights"],
        losses=tensors["train_loss"],
        seed=int(metadata["seed"]),
        round_index=int(metadata["round"]) - 1,
        params=tensors.get("before/params"),
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with one before them: safetensors refuses those."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _bytes(tensor: Tensor) -> Any:
    """Return a view of a tensor's bytes, as an array."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))
