"""PACS: 9,991 pictures of 7 classes in four domains: art painting, cartoon, photo, sketch (Li et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedgh.dataset import parquet
from fedgh.dataset.base import Augment, ImageDataset


def load(
    root: str | Path,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    train_fraction: float,
    augmentation: Augment | None,
    domain_column: str,
) -> ImageDataset:
    """Load a set in domains, from the Parquet layout; Office-31, Office-Home and DomainNet, too, exported alike.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files, with a column that names domains.
        image_size: Height and width to resize to; ``None`` where all images have one size.
        mean: Per channel on the [0, 1] scale; ``None`` to compute it from the whole train split.
        std: Likewise.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.
        domain_column: Column with the domain of each image.

    Raises:
        ConfigurationError: If ``image_size`` is not positive.
        DataError: If files, columns, images or labels are missing or wrong; the message names file and row.

    Reference:
        Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017.
    """
    rest = (None, None, image_size, mean, std, train_fraction, augmentation, None, domain_column)
    return parquet.load(root, None, *rest)
