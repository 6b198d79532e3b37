"""Columns of Parquet files by name: texts, numbers, ids; the files are laid out as in ``parquet_source``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.parquet_source import class_names_of, few, find_shards, find_test_split


@dataclass(frozen=True)
class Columns:
    """Columns of one split.

    Attributes:
        values: By name, one entry per row: ``str`` (text), ``float`` (number), ``int`` (label), a list
            (points), ``str`` (id).
        class_names: Of label columns whose metadata name them.
    """

    values: Mapping[str, list[Any]]
    class_names: Mapping[str, tuple[str, ...] | None]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


def read_columns(root: str | Path, test_split: str | None, kinds: Mapping[str, str]) -> tuple[Columns, Columns]:
    """Read columns of the train split and of the test split of a folder, all shards.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        kinds: What each column is, by name: ``text``, ``number``, ``label`` (whole numbers), ``points`` (lists of
            numbers) or ``id`` (anything).

    Raises:
        DataError: If the folder, a shard or a column is missing, of another type, or null somewhere.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"dataset.root={root} is not a folder; type dataset.root=<folder which directly holds "
            "train-00000-of-00001.parquet>."
        )
    train, test = (_read_split(folder, split, kinds) for split in ("train", test_split or find_test_split(folder)))
    _check_classes([(f"the train files in {folder}", train), ("the test files", test)])
    return train, test


def kinds_of(*columns: tuple[str | None, str]) -> dict[str, str]:
    """Return what each column is, by name, of pairs (name, kind); pairs without a name are left out.

    Raises:
        ConfigurationError: If a column is named twice.
    """
    named = [(name, kind) for name, kind in columns if name is not None]
    for place, (name, kind) in enumerate(named):
        if twice := [other for earlier, other in named[:place] if earlier == name]:
            settings = f"dataset.{_setting(twice[0])} and dataset.{_setting(kind)}"
            raise ConfigurationError(f"column {name!r} is named twice, by {settings}; name another one.")
    return dict(named)


def natural_ids(train: Sequence[str], test: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return numbers for names: int64 ``(N,)`` in the order of the training names, and ``(M,)``, -1 for others."""
    numbers = {name: number for number, name in enumerate(sorted(set(train)))}
    return torch.tensor([numbers[name] for name in train]), torch.tensor([numbers.get(name, -1) for name in test])


def class_names(train: Columns, column: str) -> tuple[str, ...]:
    """Return the names of a label column's classes: from the metadata, else numbers up to the largest label."""
    return train.class_names[column] or tuple(str(label) for label in range(max(train.values[column]) + 1))


def _read_split(folder: Path, split: str, kinds: Mapping[str, str]) -> Columns:
    files = find_shards(folder, split)
    shards = [_read_shard(path, kinds) for path in files]
    whole = Columns(
        {name: [v for shard in shards for v in shard.values[name]] for name in kinds}, shards[0].class_names
    )
    _check_classes([(str(path), shard) for path, shard in zip(files, shards, strict=True)])
    if len(whole) == 0:
        raise DataError(f"the {split} split in {folder} has no rows, expected at least one; copy its files again.")
    return whole


def _check_classes(parts: Sequence[tuple[str, Columns]]) -> None:
    """Refuse parts, each with what it is called, whose labels mean different things."""
    first, known = parts[0]
    for other, part in parts[1:]:
        for column, names in known.class_names.items():
            if part.class_names[column] != names:
                here, there = (few(classes or ()) for classes in (names, part.class_names[column]))
                raise DataError(
                    f"{first} and {other} name different classes in column {column!r} ({here} against {there}), "
                    "expected the same in the same order; the labels of one mean something else."
                )


def _read_shard(path: Path, kinds: Mapping[str, str]) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        if missing := [name for name in kinds if name not in schema.names]:
            raise DataError(
                f"{path}: there is no column {missing[0]!r}; the columns are {', '.join(schema.names)}. Type "
                f"dataset.{_setting(kinds[missing[0]])}=<one of them>."
            )
        table = pq.read_table(path, columns=list(kinds), partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); it has {path.stat().st_size} bytes and may be half copied "
            "or a Git LFS pointer, so copy it again."
        ) from error
    values = {name: _checked(path, name, kind, table[name]) for name, kind in kinds.items()}
    labels = [name for name, kind in kinds.items() if kind == "label"]
    return Columns(values, {name: class_names_of(path, schema, name) for name in labels})


def _checked(path: Path, name: str, kind: str, column: Any) -> list[Any]:
    import pyarrow.types as types

    fits = {
        "text": types.is_string(column.type) or types.is_large_string(column.type),
        "number": types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type),
        "label": types.is_integer(column.type) or types.is_boolean(column.type),
        "points": (types.is_list(column.type) or types.is_fixed_size_list(column.type))
        and types.is_floating(column.type.value_type),
        "id": True,
    }[kind]
    if not fits:
        words = {"text": "texts", "number": "numbers", "label": "whole numbers from 0", "points": "lists of numbers"}
        expected = words[kind]
        raise DataError(
            f"{path}: column {name!r} holds {column.type}, expected {expected}; type dataset.{_setting(kind)}=<another "
            "column>."
        )
    values = column.to_pylist()
    if None in values:
        raise DataError(f"{path}, row {values.index(None)}: column {name!r} is null; fill it in, or remove the row.")
    convert = {"text": str, "number": float, "label": int, "points": list, "id": str}[kind]
    return [convert(value) for value in values]


def _setting(kind: str) -> str:
    named = {"text": "text_column", "label": "label_column", "id": "client_column", "number": "columns"}
    return named.get(kind, kind)


def standardized(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return both splits as float32 with the train split's mean 0 and standard deviation 1, column by column.

    A column that never changes becomes 0.

    Args:
        train: ``(N,)`` or ``(N, columns)``.
        test: ``(M,)`` or ``(M, columns)``.
    """
    mean, deviation = train.mean(0), train.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    return tuple(torch.from_numpy(((split - mean) / scale).astype(np.float32)) for split in (train, test))  # type: ignore[return-value]
