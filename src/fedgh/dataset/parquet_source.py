"""Parquet as on the Hugging Face hub: a folder with ``<split>-00000-of-00002.parquet`` and so on.

``<split>.parquet``, ``<split>/0000.parquet`` and a folder ``data`` around any of these are found, too.

A row has an image column (``image`` or ``img``: a struct whose ``bytes`` hold an encoded JPEG or PNG) and an integer
label column. Class names stand in the schema's ``huggingface`` metadata. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fedgh.core.errors import DataError
from fedgh.dataset.image_decoding import EncodedSplit

IMAGE_COLUMNS = ("image", "img")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class ParquetSplit(EncodedSplit):
    """One split as its files hold it.

    Attributes:
        class_names: From the metadata; ``None`` where the files name no classes.
    """

    class_names: tuple[str, ...] | None


def read_splits(
    root: str | Path, test_split: str | None, label_columns: Sequence[str]
) -> tuple[ParquetSplit, ParquetSplit]:
    """Read the train split and the test split of a folder, all shards, images still encoded.

    Args:
        root: Folder which directly holds the Parquet files.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        label_columns: Accepted names of the label column; exactly one of them must exist.

    Raises:
        DataError: If the folder, a shard, or a column is missing, a file is truncated, or an image or label is null.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"dataset.root={root} is not a folder; looked there for train-*.parquet (source=parquet). "
            "Type dataset.root=<folder which directly holds train-00000-of-00001.parquet>."
        )
    train = _read_split(folder, "train", label_columns)
    test = _read_split(folder, test_split or find_test_split(folder), label_columns)
    if train.class_names != test.class_names:
        raise DataError(
            f"{folder}: train and test files name different classes ({few(train.class_names or ())} against "
            f"{few(test.class_names or ())}), expected the same in the same order; they are not of one data set."
        )
    return train, test


def check_labels(split: ParquetSplit, num_classes: int) -> None:
    """Raise a DataError that names file and row if a label is outside ``0 .. num_classes - 1``."""
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{split.where(int(wrong[0]))}: label {split.labels[wrong[0]]} is outside the classes 0 to "
            f"{num_classes - 1} ({len(wrong)} such labels in the split); "
            "if another column holds the labels, type dataset=parquet dataset.label_column=<its name>."
        )


def find_shards(folder: Path, split: str) -> list[Path]:
    """Return the files of a split in order.

    In this order of preference: ``train-00000-of-00002.parquet`` and so on, ``train.parquet``, or whatever is in a
    folder ``train``; in the folder itself, or in its folder ``data`` as on the hub.

    Raises:
        DataError: If there is none, or if one of the numbered shards is missing or there twice.
    """
    files = _files(folder, split)
    if not files:
        raise DataError(
            f"no {split}-*.parquet, {split}.parquet or {split}/*.parquet in {folder}, found "
            f"{few([path.name for path in sorted(folder.iterdir())])}; "
            f"type dataset.root=<folder which directly holds {split}-00000-of-00001.parquet>."
        )
    numbered = [(int(match[1]), int(match[2])) for path in files if (match := SHARD.search(path.name))]
    total = max((count for _, count in numbered), default=0)
    missing = sorted(set(range(total)) - {number for number, _ in numbered})
    if missing:
        raise DataError(
            f"{folder} lacks {split}-{missing[0]:05d}-of-{total:05d}.parquet ({len(missing)} of {total} shards "
            f"missing, found {few([path.name for path in files])}); copy all {total} files into this folder."
        )
    if numbered and len(files) != total:
        raise DataError(
            f"{folder} holds {len(files)} files for {total} shards of the {split} split "
            f"({few([path.name for path in files])}); remove those that do not belong to it."
        )
    return files


def _files(folder: Path, split: str) -> list[Path]:
    for place in (folder, folder / "data"):
        for pattern in (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"):
            if files := sorted(place.glob(pattern)):
                return files
    return []


def find_test_split(folder: Path) -> str:
    """Return ``test``, else ``valid``, else ``validation``, whichever has files; a DataError if none has."""
    for name in ("test", "valid", "validation"):
        if _files(folder, name):
            return name
    raise DataError(
        f"no test-*.parquet, valid-*.parquet or validation-*.parquet in {folder}, "
        f"found {few([path.name for path in sorted(folder.iterdir())])}; copy the test split there as well "
        "(for other names: dataset=parquet dataset.test_split=<prefix of the files>)."
    )


def _read_split(folder: Path, split: str, label_columns: Sequence[str]) -> ParquetSplit:
    files = find_shards(folder, split)
    shards = [_read_shard(path, label_columns) for path in files]
    ends = list(accumulate(len(images) for images, _, _ in shards))
    if ends[-1] == 0:
        raise DataError(f"the {split} split in {folder} has no rows, expected at least one; copy its files again.")

    for path, (_, _, names) in zip(files, shards, strict=True):
        if names != shards[0][2]:
            raise DataError(
                f"{files[0]} and {path} name different classes ({few(shards[0][2] or ())} against "
                f"{few(names or ())}), expected the same in the same order; the labels of one mean something else."
            )

    def where(row: int) -> str:
        shard = bisect_right(ends, row)
        return f"{files[shard]}, row {row - (ends[shard - 1] if shard else 0)}"

    return ParquetSplit(
        images=[image for images, _, _ in shards for image in images],
        labels=np.concatenate([labels for _, labels, _ in shards]),
        where=where,
        class_names=shards[0][2],
    )


def _read_shard(path: Path, label_columns: Sequence[str]) -> tuple[list[bytes], np.ndarray, tuple[str, ...] | None]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        image_column, label_column = _image_column(path, schema), _label_column(path, schema, label_columns)
        table = pq.read_table(path, columns=[image_column, label_column], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); it has {path.stat().st_size} bytes and may be half copied "
            "or a Git LFS pointer, so copy it again."
        ) from error
    images = pc.struct_field(table[image_column], "bytes").to_pylist()
    _check_no_null(path, image_column, images, "bytes of a JPEG or PNG; export the data set with its images embedded")
    labels = table[label_column].to_pylist()
    _check_no_null(
        path, label_column, labels, "a label; remove the row, or choose dataset.label_column (dataset=parquet)"
    )
    return images, np.asarray(labels, dtype=np.int64), class_names_of(path, schema, label_column)


def _check_no_null(path: Path, column: str, values: list[Any], expected: str) -> None:
    if None in values:
        raise DataError(f"{path}, row {values.index(None)}: column {column!r} is null, expected {expected}.")


def _image_column(path: Path, schema: Any) -> str:
    import pyarrow as pa

    found = [name for name in IMAGE_COLUMNS if name in schema.names]
    if len(found) != 1:
        raise DataError(
            f"{path}: expected exactly one image column named 'image' or 'img', found {len(found)} among the columns "
            f"{schema.names}; rename the column that holds the images."
        )
    kind = schema.field(found[0]).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(
            f"{path}: column {found[0]!r} is {kind}, expected a struct<bytes, path> with an encoded image in bytes; "
            "export the data set with the image feature of Hugging Face datasets."
        )
    return found[0]


def _label_column(path: Path, schema: Any, accepted: Sequence[str]) -> str:
    import pyarrow as pa

    found = [name for name in accepted if name in schema.names]
    if len(found) != 1:
        integers = [field.name for field in schema if pa.types.is_integer(field.type)]
        raise DataError(
            f"{path}: expected exactly one label column named {' or '.join(map(repr, accepted))}, found {found}; the "
            f"integer columns are {integers}. Type dataset=parquet dataset.label_column=<one of them>."
        )
    if not pa.types.is_integer(schema.field(found[0]).type):
        raise DataError(
            f"{path}: label column {found[0]!r} is {schema.field(found[0]).type}, expected integers from 0; "
            "type dataset=parquet dataset.label_column=<an integer column>, or encode the labels."
        )
    return found[0]


def class_names_of(path: Path, schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Return the names that a schema's metadata give to a column's classes, or None."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][label_column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the schema's 'huggingface' metadata does not describe column {label_column!r} ({error!r}), "
            "expected info.features.<column>; write the file again with Hugging Face datasets, or drop the metadata."
        ) from error
    return tuple(str(name) for name in names) if names else None


def few(names: Sequence[str]) -> str:
    """Return the first few names as a reader wants them in a message."""
    shown = ", ".join(names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
