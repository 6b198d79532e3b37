"""MTFL: 12,995 faces with several labels each, such as smile and pose of the head: tasks on shared features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import Augment, ImageDataset, channel_statistics, take_fraction
from fedgh.dataset.image_decoding import decode_splits
from fedgh.dataset.parquet_columns import class_names, read_columns
from fedgh.dataset.parquet_source import read_splits
from fedgh.task.multi_task import MultiTask


def load(
    root: str | Path, tasks: Sequence[str], image_size: int | None, train_fraction: float, augmentation: Augment | None
) -> ImageDataset:
    """Load images with several labels each, of MTFL or any Parquet set with several integer columns.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        tasks: Columns of whole numbers, a task each; label-skew partitions go by the first.
        image_size: Height and width to resize to; ``None`` where all images have one size.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.

    Raises:
        ConfigurationError: If there are fewer than two tasks.
        DataError: If files, columns, images or labels are missing or wrong.

    Reference:
        Zhang et al., "Facial Landmark Detection by Deep Multi-task Learning", ECCV 2014; federated with these tasks:
        Mortaheb, Vahapoglu and Ulukus, "FedGradNorm", 2022.
    Departures:
        The fifth task, where eyes, nose and mouth are, is a regression and left out: a multi-task model here has
        classes only.
    """
    names = list(tasks)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigurationError(f"dataset.tasks must name two columns at least, each once, got {names}.")
    train, test = read_columns(root, None, dict.fromkeys(names, "label"))
    train_images, test_images = decode_splits(read_splits(root, None, (names[0],)), image_size)
    task = MultiTask({name: class_names(train, name) for name in names})
    mean, std = channel_statistics(train_images)
    targets, test_targets = (
        torch.tensor([split.values[name] for name in names]).T.contiguous() for split in (train, test)
    )
    whole = ImageDataset(
        name="mtfl",
        train_images=train_images,
        train_labels=targets,
        test_images=test_images,
        test_labels=test_targets,
        class_names=task.strata_names,
        mean=mean,
        std=std,
        augmentation=augmentation,
        task=task,
    )
    return take_fraction(whole, train_fraction)
