"""MTFL: 12,995 faces with smile, gender, glasses, pose and landmarks: tasks on shared features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.apart import deal_tasks
from fedgh.dataset.base import Augment, ImageDataset, channel_statistics, take_fraction
from fedgh.dataset.image_decoding import decode_splits
from fedgh.dataset.parquet_columns import Columns, class_names, read_columns
from fedgh.dataset.parquet_source import read_splits
from fedgh.task.multi_task import MultiTask


def load(
    root: str | Path,
    tasks: Sequence[str],
    image_size: int | None,
    train_fraction: float,
    augmentation: Augment | None,
    points: str | None,
    clients_per_task: int | None = None,
    task_shares: Sequence[float] | None = None,
) -> ImageDataset:
    """Load images with several labels each, of MTFL or any Parquet set with several integer columns.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        tasks: Columns of whole numbers, a task each; label-skew partitions go by the first.
        image_size: Height and width to resize to; ``None`` where all images have one size.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.
        points: Column of one more task, the last: lists of abscissae and then ordinates, as shares of width and height,
            those of both eyes first; ``None`` for none.
        clients_per_task: Give each client one task alone, with so many clients a task, see
            :func:`fedgh.dataset.apart.deal_tasks`; ``None``: every example has all its targets.
        task_shares: How the training examples are then shared out, one number per client; ``None``: evenly.

    Raises:
        ConfigurationError: If there are fewer than two tasks, or pictures would be changed and their points not.
        DataError: If files, columns, images or labels are missing or wrong.

    Reference:
        Zhang et al., "Facial Landmark Detection by Deep Multi-task Learning", ECCV 2014; federated with these tasks:
        Mortaheb, Vahapoglu and Ulukus, "FedGradNorm", 2022.
    """
    names = list(tasks)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigurationError(f"dataset.tasks must name two columns at least, each once, got {names}.")
    if points is not None and augmentation is not None:
        raise ConfigurationError(
            "dataset.augmentation moves pictures and not their points; type dataset.points=null, or leave it out."
        )
    lists = {} if points is None else {points: "points"}
    train, test = read_columns(root, None, dict.fromkeys(names, "label") | lists)
    train_images, test_images = decode_splits(read_splits(root, None, (names[0],)), image_size)
    numbers = {} if points is None else {points: len(train.values[points][0]) // 2}
    task = MultiTask({name: class_names(train, name) for name in names}, points=numbers)
    mean, std = channel_statistics(train_images)
    targets, test_targets = (_targets(split, names, numbers, root) for split in (train, test))
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
    kept = take_fraction(whole, train_fraction)
    return kept if clients_per_task is None else deal_tasks(kept, clients_per_task, task_shares)


def _targets(split: Columns, names: Sequence[str], points: Mapping[str, int], root: str | Path) -> Tensor:
    """Return labels and then points, ``(N, columns)``."""
    labels = torch.tensor([split.values[name] for name in names]).T.contiguous()
    for name, count in points.items():
        lengths = [len(row) for row in split.values[name]]
        if count < 2 or set(lengths) != {2 * count}:
            raise DataError(
                f"dataset.root={root}: column {name!r} has lists of {sorted(set(lengths))} numbers, expected one even "
                "length of 4 or more, x and y of as many points everywhere; type dataset.points=null to leave it out."
            )
        labels = torch.cat([labels.float(), torch.tensor(split.values[name], dtype=torch.float32)], dim=1)
    return labels
