"""Several tasks dealt out: each client has one of them, and examples of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import numpy_generator
from fedgh.dataset.base import ImageDataset
from fedgh.task.base import PADDING
from fedgh.task.multi_task import MultiTask


def deal_tasks(dataset: ImageDataset, clients_per_task: int, shares: Sequence[float] | None) -> ImageDataset:
    """Deal examples to clients that have one task each; the labels of all other tasks are taken away.

    Client k has task ``k mod T``. The natural clients of the result (``partition=natural``) are these; both splits are
    dealt, the test split evenly. Who gets what is drawn once and for all, whatever the experiment's seed.

    Args:
        dataset: With a :class:`~fedgh.task.multi_task.MultiTask` of T tasks.
        clients_per_task: How many clients share a task, each with examples of its own.
        shares: How the training examples are shared out to the clients, ``(clients,)`` positive; None: evenly.

    Raises:
        ConfigurationError: If a number is not positive, or there is not a share for each client.
    """
    task = dataset.task
    assert isinstance(task, MultiTask)  # noqa: S101 - only data sets with several tasks call this
    if clients_per_task < 1:
        raise ConfigurationError(f"dataset.clients_per_task must be 1 or more, got {clients_per_task}")
    num_clients = clients_per_task * task.num_targets
    given = [1.0] * num_clients if shares is None else [float(share) for share in shares]
    if len(given) != num_clients or min(given) <= 0:
        raise ConfigurationError(
            f"dataset.task_shares must hold {num_clients} positive numbers, one per client ({task.num_targets} tasks, "
            f"{clients_per_task} clients each), got {given}"
        )
    train, train_targets = _dealt(dataset.train_targets, given, task.columns, "train")
    test, test_targets = _dealt(dataset.test_targets, [1.0] * num_clients, task.columns, "test")
    apart = replace(task, apart=True)
    return replace(
        dataset,
        name=f"{dataset.name}, tasks apart",
        train_labels=train_targets,
        test_labels=test_targets,
        class_names=apart.strata_names,
        task=apart,
        client_ids=train,
        test_client_ids=test,
    )


def _dealt(
    targets: torch.Tensor, shares: Sequence[float], columns: Sequence[int], split: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the client of each example, ``(N,)``, and the targets with those of one task left each.

    Args:
        targets: ``(N, columns)``.
        shares: Of the examples, per client.
        columns: Numbers of columns of the tasks.
        split: Its name.
    """
    ends = np.round(np.cumsum(shares) / np.sum(shares) * len(targets)).astype(int)
    order = numpy_generator(0, f"tasks_{split}").permutation(len(targets))
    owners = np.empty(len(targets), dtype=np.int64)
    owners[order] = np.searchsorted(ends, np.arange(len(targets)), side="right")
    clients = torch.from_numpy(owners)
    tasks = torch.arange(len(columns)).repeat_interleave(torch.tensor(columns))
    mine = tasks == (clients % len(columns))[:, None]
    return clients, torch.where(mine, targets, torch.full_like(targets, PADDING))
