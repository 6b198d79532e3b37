"""FEMNIST: digits and letters of 28x28 by some 3,500 writers, who are the clients (LEAF, Caldas et al., 2018)."""

from __future__ import annotations

from pathlib import Path

from fedgh.dataset import parquet
from fedgh.dataset.base import Augment, ImageDataset


def load(
    root: str | Path, label_column: str, client_column: str, train_fraction: float, augmentation: Augment | None
) -> ImageDataset:
    """Load FEMNIST from Parquet files; its writers are natural clients, for ``partition=natural``.

    LEAF draws a tenth of each writer's images as test split; files from elsewhere may have none, and need one.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        label_column: Integer column with the character.
        client_column: Column with the writer.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.

    Raises:
        DataError: If files, columns, images or labels are missing or wrong; the message names file and row.
    """
    rest = (None, label_column, None, None, None, train_fraction, augmentation, client_column, None)
    return parquet.load(root, "femnist", *rest)
