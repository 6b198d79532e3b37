"""Tables that grow by some rows a round: a folder each, with one Parquet file a round.

``pandas.read_parquet(run / "conflict" / "clients")`` reads all of it. Nothing is appended to: a round that is repeated
after a resume replaces its own file, and writing a round removes what an abandoned continuation left behind it. So the
tables of a resumed run are those of a run straight through.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgh.core.errors import DataError
from fedgh.storage.durable import replace_file

Columns = Mapping[str, Any]
"""Equally long columns by name: numpy arrays, tensors on the CPU, or lists."""


def write_rows(folder: Path, round_index: int, columns: Columns) -> None:
    """Write a round's rows, replacing its file only once it is complete; files of later rounds are removed.

    Args:
        folder: Of the table; made where it is missing.
        round_index: Rounds finished, from 1; becomes the first column, ``round``.
        columns: The others.

    Raises:
        StorageError: If the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = _path(folder, round_index)
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name.startswith("round_") and name > path.name:  # of equally many digits
            (folder / name).unlink(missing_ok=True)
    arrays = {
        name: pa.array(values if isinstance(values, list) else np.asarray(values)) for name, values in columns.items()
    }
    rounds = pa.array(np.full(len(next(iter(arrays.values()))), round_index, dtype=np.int32))
    buffer = pa.BufferOutputStream()
    table = pa.table({"round": rounds, **arrays})
    parquet.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
    replace_file(path, buffer.getvalue())


def read_rounds(folder: Path) -> list[int]:
    """Return the rounds a table has, ascending; empty if the table is not there."""
    return [number for _, number in _files(folder)]


def read_rows(folder: Path, round_index: int, columns: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read one round.

    Args:
        folder: Of the table.
        round_index: A round it has.
        columns: Which; None for all.

    Raises:
        DataError: If the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = _path(folder, round_index)
    try:
        with path.open("rb") as file:
            table = parquet.ParquetFile(file).read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; going on with the run mends it (resume=<its directory>), or remove it: "
            "the other rounds do not need it"
        ) from error
    return {name: table.column(name).to_numpy() for name in table.column_names}


def layer_history(folder: Path, rounds: Sequence[int] | None = None) -> dict[str, Any]:
    """Return what the picture of the layers over the rounds needs, from the table ``layers``.

    Args:
        folder: Of the table.
        rounds: Which of its rounds; None for all.

    Returns:
        ``rounds``, ``layers`` in the order of the model, and ``ratio`` and ``cosine_mean``, ``(layers, rounds)``, NaN
        where a round lacks a layer.
    """
    rounds = read_rounds(folder) if rounds is None else list(rounds)
    tables = [read_rows(folder, number) for number in rounds]
    layers = list(dict.fromkeys(str(name) for table in tables for name in table["layer"]))
    history: dict[str, Any] = {"rounds": rounds, "layers": layers}
    for measure in ("ratio", "cosine_mean"):
        columns = [dict(zip(table["layer"], table[measure], strict=True)) for table in tables]
        history[measure] = np.array([[column.get(layer, np.nan) for column in columns] for layer in layers])
    return history


def count_projections(folder: Path, most: int = 200) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count from the table ``pairs`` who was projected against whom.

    Args:
        folder: Of the table.
        most: Clients to count for; of more, those that were projected most often.

    Returns:
        Ids, ascending; and ``(clients, clients)``: rounds in which the client of the row was projected against that of
        the column.
    """
    names = ["first", "second", "bent_first", "bent_second"]
    tables = [read_rows(folder, number, names) for number in read_rounds(folder)]
    pairs = {name: np.concatenate([table[name] for table in tables]) for name in names} if tables else {}
    if not pairs or not len(pairs["first"]):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    ends = np.concatenate([pairs["first"], pairs["second"]])
    ids, place = np.unique(ends, return_inverse=True)
    often = np.bincount(place, np.concatenate([pairs["bent_first"], pairs["bent_second"]]))
    kept = np.sort(np.argsort(-often, kind="stable")[:most])
    there = np.full(len(ids), -1)
    there[kept] = np.arange(len(kept))
    first, second = there[place].reshape(2, -1)
    both = (first >= 0) & (second >= 0)
    counts = np.zeros((len(kept), len(kept)))
    np.add.at(counts, (first[both], second[both]), pairs["bent_first"][both])
    np.add.at(counts, (second[both], first[both]), pairs["bent_second"][both])
    return ids[kept].astype(np.int64), counts


def _path(folder: Path, round_index: int) -> Path:
    return folder / f"round_{round_index:06d}.parquet"


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Return the files of a table with their rounds, ascending."""
    found = [(path, path.stem.removeprefix("round_")) for path in folder.glob("round_*.parquet")]
    return sorted(((path, int(number)) for path, number in found if number.isdigit()), key=lambda item: item[1])
