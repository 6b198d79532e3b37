"""The bundled digits with two labels each: which digit, and whether it is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedgh.dataset import digits
from fedgh.dataset.apart import deal_tasks
from fedgh.dataset.base import Augment, ImageDataset
from fedgh.task.multi_task import MultiTask


def load(
    train_fraction: float,
    augmentation: Augment | None,
    clients_per_task: int | None = None,
    task_shares: Sequence[float] | None = None,
) -> ImageDataset:
    """Load the digits as two tasks, ``digit`` and ``parity``, on shared features; splits are those of ``digits``.

    Args:
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.
        clients_per_task: Give each client one task alone, with so many clients a task, see
            :func:`fedgh.dataset.apart.deal_tasks`; ``None``: every example has both labels.
        task_shares: How the training examples are then shared out, one number per client; ``None``: evenly.
    """
    whole = digits.load(train_fraction, augmentation)
    labels, test_labels = (torch.stack([own, own % 2], dim=1) for own in (whole.train_labels, whole.test_labels))
    task = MultiTask({"digit": whole.class_names, "parity": ("even", "odd")})
    both = replace(whole, name="digits_two", train_labels=labels, test_labels=test_labels, task=task)
    return both if clients_per_task is None else deal_tasks(both, clients_per_task, task_shares)
