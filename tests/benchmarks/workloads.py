"""The workloads W1 to W3, as a federation and as a bare PyTorch loop that does the same mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedgh.aggregator.mean import Mean
from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.allocator import keep_freed_memory
from fedgh.core.flat import FlatModel
from fedgh.dataset.augmentation import Augmentation
from fedgh.dataset.base import ImageDataset
from fedgh.executor.auto import choose
from fedgh.executor.ray import RayExecutor
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import Federation, initial_state, run_round
from fedgh.model.base import Model
from fedgh.model.mlp import MLP
from fedgh.partition.base import Partition
from fedgh.sampler.uniform import Uniform
from fedgh.server_optimizer.sgd import SGD

TEST_IMAGES = 2000


class CNN(Model):
    """conv 3x3 (32), pool, conv 3x3 (64), pool, dense 128, head: 545,098 parameters on 3x32x32."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        depth, height, width = input_shape
        self.body = nn.Sequential(
            nn.Conv2d(depth, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, num_outputs)

    def features(self, x):
        return self.body(x)


@dataclass(frozen=True)
class Workload:
    name: str
    num_clients: int
    num_examples: int  # of each client
    clients_per_round: int
    batch_size: int
    model: Callable[..., Model]
    side: int = 32  # of an image, pixels
    num_classes: int = 10
    augmentation: Augmentation | None = None

    def dataset(self) -> ImageDataset:
        """Noise in which each class is a little brighter in rows of its own, so that there is something to learn."""
        generator = torch.Generator().manual_seed(0)
        splits = []
        for count in (self.num_clients * self.num_examples, TEST_IMAGES):
            labels = torch.randint(0, self.num_classes, (count,), generator=generator)
            size = (count, 3, self.side, self.side)
            images = torch.randint(0, 192, size, generator=generator, dtype=torch.uint8)
            for row in range(10):
                images[labels % 10 == row, :, 3 * row : 3 * row + 3] += 64
            splits += [images, labels]
        names = tuple(map(str, range(self.num_classes)))
        return ImageDataset("noise", *splits, names, (0.4,) * 3, (0.23,) * 3, self.augmentation)


WORKLOADS = {
    "W1": Workload("W1", 20, 500, 20, 64, CNN),
    "W2": Workload("W2", 200, 50, 20, 10, CNN),
    "W3": Workload("W3", 100, 20, 20, 10, partial(MLP, hidden=[])),
}
EXECUTORS = {"sequential": SequentialExecutor, "vectorized": partial(VectorizedExecutor, width=20)}
AUTO = partial(choose, width=20)
TWO_RAY_WORKERS = {
    **{"address": None, "num_workers": 2, "cpus_per_worker": 1, "threads_per_worker": 1, "max_attempts": 3},
    **{"object_store_mib": None, "row_dtype": "float32"},
}


def build(
    workload: Workload,
    executor: str,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Federation:
    keep_freed_memory()  # as every command does; a bare loop or a peer in this process has it as well
    dataset = workload.dataset()
    owners = np.repeat(np.arange(workload.num_clients), workload.num_examples)
    labels, num_classes = dataset.train_labels.numpy(), workload.num_classes
    partition = Partition.from_owners(labels, num_classes, owners, workload.num_clients, {})
    dataset = dataset.to(device)
    torch.manual_seed(0)
    module = workload.model(input_shape=dataset.input_shape, num_outputs=num_classes)
    model = FlatModel(module, device, memory_format)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    algorithm = FedAvg(optimizer=optimizer, local_epochs=1, batch_size=workload.batch_size)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    trainer = pl.Trainer(accelerator=accelerator, devices=1, max_epochs=1, logger=False, **quiet)
    parts: dict[str, Any] = {"model": model, "algorithm": algorithm, "dataset": dataset, "seed": 1}
    indices = [torch.from_numpy(rows) for rows in partition.client_indices]
    ray = partial(RayExecutor, gpus_per_worker=0.5 if device.type == "cuda" else 0, **TWO_RAY_WORKERS)
    return Federation(
        partition=partition,
        sampler=Uniform(workload.clients_per_round / workload.num_clients),
        executor=(EXECUTORS | {"auto": AUTO, "ray": ray})[executor](trainer=trainer, client_indices=indices, **parts),
        aggregator=Mean(),
        server_optimizer=SGD(1.0),
        **parts,
    )


def rounds(federation: Federation) -> Callable[[], dict[str, float]]:
    """Return what runs one round more, as the training loop does: train, aggregate, measure conflict, evaluate.

    It returns the round's metrics.
    """
    schedule = Schedule(1 << 30, 1, TEST_IMAGES, 1 << 30)
    state = [initial_state(federation.model)]

    def play() -> dict[str, float]:
        outcome = run_round(federation, state[0])
        state[0] = outcome.server
        return describe(federation, outcome, schedule).metrics

    return play


class BareLoop:
    """FedAvg in plain PyTorch: one model object reused, float tensors in memory, nothing recorded."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        dataset = workload.dataset().to(device)
        self.images, self.labels = dataset.normalize(dataset.train_images), dataset.train_labels
        self.test_images, self.test_labels = dataset.normalize(dataset.test_images), dataset.test_labels
        torch.manual_seed(0)
        self.model = workload.model(input_shape=dataset.image_shape, num_outputs=workload.num_classes).to(device)
        self.workload, self.device = workload, device
        self.server = [p.detach().clone() for p in self.model.parameters()]

    def local_training(self, client: int) -> None:
        size, batch_size = self.workload.num_examples, self.workload.batch_size
        parameters = list(self.model.parameters())
        with torch.no_grad():
            for parameter, value in zip(parameters, self.server, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        order = torch.randperm(size, device=self.device) + client * size
        for rows in order.split(batch_size):
            images, labels = self.batch(rows)
            optimizer.zero_grad()
            cross_entropy(self.model(images), labels).backward()
            optimizer.step()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.labels[rows]

    def __call__(self) -> None:
        workload = self.workload
        cohort = torch.randperm(workload.num_clients)[: workload.clients_per_round].tolist()
        total: list[Tensor] = [torch.zeros_like(value) for value in self.server]
        for client in cohort:
            self.local_training(client)
            with torch.no_grad():
                for value, parameter in zip(total, self.model.parameters(), strict=True):
                    value.add_(parameter, alpha=1 / len(cohort))
        self.server = total
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), self.server, strict=True):
                parameter.copy_(value)
            logits = self.model(self.test_images)
            float(cross_entropy(logits, self.test_labels))
            float((logits.argmax(1) == self.test_labels).float().mean())
