"""CINIC-10: 270,000 images of 32x32 in CIFAR-10's classes, from CIFAR-10 and ImageNet (Darlow et al., 2018)."""

from __future__ import annotations

from pathlib import Path

from fedgh.dataset import parquet
from fedgh.dataset.base import Augment, ImageDataset


def load(root: str | Path, train_fraction: float, augmentation: Augment | None) -> ImageDataset:
    """Load CINIC-10 from Parquet files, its train and test splits; the third is not read.

    Mean and deviation are computed from the train split. Arguments and errors as in :func:`fedgh.dataset.parquet.load`.
    """
    return parquet.load(root, "cinic10", "test", None, None, None, None, train_fraction, augmentation)
