"""Any image classification set in the Parquet layout of the Hugging Face hub, from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.base import Augment, ImageDataset, channel_statistics, take_fraction
from fedgh.dataset.image_decoding import decode_splits
from fedgh.dataset.parquet_columns import natural_ids, read_columns
from fedgh.dataset.parquet_source import check_labels, read_splits


def load(
    root: str | Path,
    name: str | None,
    test_split: str | None,
    label_column: str | None,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    train_fraction: float,
    augmentation: Augment | None,
    client_column: str | None = None,
    domain_column: str | None = None,
) -> ImageDataset:
    """Load a set of one's own; the train and the test files stay the splits they are.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        name: For logs; ``None`` for the folder's name.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        label_column: Integer column; ``None`` for ``label`` or ``fine_label``, whichever there is.
        image_size: Height and width to resize to; ``None`` where all images have one size.
        mean: Per channel on the [0, 1] scale; ``None`` to compute it from the whole train split.
        std: Likewise.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.
        client_column: Column with the natural client of each image, such as who took it; ``None`` if there is none.
            Runs stored before the setting existed go on with its default, as with the next.
        domain_column: Column with the domain of each image, such as photo or sketch; ``None`` if there is none.

    Returns:
        The data set, grey if every image is grey, else RGB. Classes are named as in the files' metadata, otherwise
        by number up to the largest label of the train split.

    Raises:
        ConfigurationError: If ``image_size`` is not positive.
        DataError: If files, columns, images or labels are missing or wrong; the message names file and row.
    """
    if image_size is not None and image_size < 1:
        raise ConfigurationError(f"dataset.image_size must be null or at least 1 pixel, got {image_size}; try 32.")
    train, test = read_splits(root, test_split, ("label", "fine_label") if label_column is None else (label_column,))
    class_names = train.class_names or tuple(str(label) for label in range(int(train.labels.max()) + 1))
    for split in (train, test):
        check_labels(split, len(class_names))
    train_images, test_images = decode_splits([train, test], image_size)
    computed_mean, computed_std = channel_statistics(train_images)
    client_ids, test_client_ids = _ids(root, test_split, client_column)
    domains, test_domains = _ids(root, test_split, domain_column)
    if test_domains is not None and bool((test_domains < 0).any()):
        raise DataError(f"{root}: column {domain_column!r} has domains in the test split that the train split lacks.")
    whole = ImageDataset(
        name=Path(root).expanduser().resolve().name if name is None else name,
        train_images=train_images,
        train_labels=torch.from_numpy(train.labels),
        test_images=test_images,
        test_labels=torch.from_numpy(test.labels),
        class_names=class_names,
        mean=computed_mean if mean is None else tuple(float(value) for value in mean),
        std=computed_std if std is None else tuple(float(value) for value in std),
        augmentation=augmentation,
        client_ids=client_ids,
        test_client_ids=test_client_ids,
        domains=domains,
        test_domains=test_domains,
    )
    return take_fraction(whole, train_fraction)


def _ids(root: str | Path, test_split: str | None, column: str | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the numbers of a column's names in both splits; nothing without a column."""
    if column is None:
        return None, None
    train, test = (split.values[column] for split in read_columns(root, test_split, {column: "id"}))
    return natural_ids(train, test)
