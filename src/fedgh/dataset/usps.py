"""USPS: 7,291 + 2,007 handwritten digits of 16x16 grey levels (Hull, 1994)."""

from __future__ import annotations

from pathlib import Path

from fedgh.dataset import parquet
from fedgh.dataset.base import Augment, ImageDataset


def load(root: str | Path, train_fraction: float, augmentation: Augment | None) -> ImageDataset:
    """Load USPS from Parquet files; arguments and errors as in :func:`fedgh.dataset.parquet.load`."""
    return parquet.load(root, "usps", None, None, None, None, None, train_fraction, augmentation)
