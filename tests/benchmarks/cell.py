"""What one cell of the paper's tables takes on this device, measured on a part of a round, and so all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from workloads import BareLoop, Workload, build

from fedgh.dataset.augmentation import Augmentation
from fedgh.federation.evaluation import evaluate
from fedgh.federation.round import Federation, initial_state
from fedgh.model.cnn2 import CNN2
from fedgh.model.mobilenet_v2 import MobileNetV2
from fedgh.paper.matrix import Cell, cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark import Bench, Row

CIFAR, TINY = Augmentation(crop_padding=4, flip=True, auto_augment=True), Augmentation(0, False, auto_augment=True)
FULL_CNN2 = partial(CNN2, channels=[32, 64], hidden=128, dropout=[0.25, 0.5])
CLIENTS = 20
COLUMNS = {
    "cifar10": Workload("CIFAR-10, cnn2", CLIENTS, 2500, CLIENTS, 64, FULL_CNN2, augmentation=CIFAR),
    "cifar100": Workload("CIFAR-100, MobileNetV2", CLIENTS, 128, CLIENTS, 64, MobileNetV2, 32, 100, CIFAR),
    "tiny_imagenet": Workload("Tiny-ImageNet, MobileNetV2", CLIENTS, 128, CLIENTS, 64, MobileNetV2, 64, 200, TINY),
}
"""What is trained on to measure a column: a whole pass of 20 clients over CIFAR-10, two steps of 20 clients else."""
CPU_CLIENTS = {"cifar10": 2, "cifar100": 1, "tiny_imagenet": 1}
"""On a CPU clients go one after the other, so that a few of them tell; on a GPU they train together."""
TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny_imagenet": 100_000}
TEST_IMAGES = 10_000
TRIED_IMAGES = 200
"""Test images of which the evaluation is measured: one batch of a run."""
TABLES = ("table1", "table2", "table3", "table4")


@dataclass(frozen=True)
class Cost:
    """Seconds an image.

    Attributes:
        train: To augment it and train on it once.
        test: To evaluate the global model on it.
    """

    train: float
    test: float

    def seconds(self, passes: float, num_rounds: int) -> float:
        """Return what so many passes over an image and an evaluation each round take."""
        return passes * self.train + num_rounds * TEST_IMAGES * self.test


def passes(cell: Cell) -> float:
    """Return how many times a cell trains on an image."""
    settings = cell.settings
    images = settings["sampler.fraction"] * TRAIN_IMAGES[settings["dataset"]]
    return images * settings["algorithm.local_epochs"] * settings["num_rounds"]


def distinct(places: Iterable[str]) -> list[Cell]:
    """Return the cells of some places of the paper; those that two share count once."""
    return list({cell.name: cell for cell in cells() if cell.place in places}.values())


class TorchvisionLoop(BareLoop):
    """The bare loop on images that torchvision augments and normalizes one by one, in the loop's own process."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        super().__init__(workload, device)
        dataset = workload.dataset()
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in dataset.train_images]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(workload.side, 4),
                v2.RandomHorizontalFlip(),
                v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(dataset.mean, dataset.std),
            ]
        )

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.stack([self.transform(self.pictures[row]) for row in rows.tolist()])
        return images.to(self.device), self.labels[rows]


def cell(bench: Bench) -> Iterator[Row]:
    """One round of CIFAR-10, one cell of each column, all cells of tables 1 to 4."""
    parts = {name: part_of(bench, name) for name in COLUMNS}
    costs = {name: cost(bench, part) for name, part in parts.items()}
    in_a_round = 5 * TRAIN_IMAGES["cifar10"]
    yield (
        "a round of CIFAR-10, cnn2, E = 5",
        f"{costs['cifar10'].seconds(in_a_round, 1):.1f} s, {images_of(parts['cifar10']) / in_a_round:.1%} measured",
        f"{against_torchvision(bench, parts['cifar10']):.3f} of the bare loop with torchvision's transforms",
    )
    for name, found in costs.items():
        example = next(c for c in distinct(TABLES) if c.settings["dataset"] == name)
        yield (
            COLUMNS[name].name,
            f"{1e3 * found.train:.3g} ms a sample pass, {1e3 * found.test:.3g} to test",
            f"{hours([example], costs):.3g} hours a cell of {example.settings['num_rounds']} rounds, {CLIENTS} clients",
        )
    for places in (*((table,) for table in TABLES), TABLES):
        chosen, name = distinct(places), places[0] if len(places) == 1 else "tables 1 to 4"
        took = hours(chosen, costs)
        yield (
            f"{name}, {len(chosen)} distinct cells",
            f"{sum(map(passes, chosen)) / 1e6:,.0f} million sample passes",
            f"{took:,.0f} hours ({took / 24:,.1f} days), every algorithm at FedAvg's cost",
        )


def part_of(bench: Bench, name: str) -> Workload:
    """Return as much of a column's round as is measured on this device."""
    clients = CPU_CLIENTS[name] if bench.device.type == "cpu" else CLIENTS
    num_examples = max(64, round(bench.scale * COLUMNS[name].num_examples))
    return replace(COLUMNS[name], num_clients=clients, clients_per_round=clients, num_examples=num_examples)


def images_of(part: Workload) -> int:
    return part.num_clients * part.num_examples


def cost(bench: Bench, part: Workload) -> Cost:
    """Measure local training, and the evaluation of one batch."""
    federation = build(part, "auto", bench.device, torch.channels_last)
    dataset = federation.dataset
    few = replace(
        dataset, test_images=dataset.test_images[:TRIED_IMAGES], test_labels=dataset.test_labels[:TRIED_IMAGES]
    )
    server = initial_state(federation.model)
    train = median(bench, training(federation))
    test = median(bench, lambda: evaluate(federation.model, server, few, TRIED_IMAGES))
    return Cost(train / images_of(part), test / TRIED_IMAGES)


def training(federation: Federation) -> Callable[[], object]:
    """Return the local training of all clients."""
    server = initial_state(federation.model)
    return partial(federation.executor, range(len(federation.partition.client_indices)), server)


def median(bench: Bench, function: Callable[[], object]) -> float:
    """Return the median seconds of a call, after one that warms up."""
    function()
    return statistics.median(bench.seconds(function) for _ in range(bench.pairs))


def against_torchvision(bench: Bench, part: Workload) -> float:
    """Return seconds a sample pass over those of the bare loop, which takes two clients one after the other."""
    bare = TorchvisionLoop(replace(part, num_clients=2, clients_per_round=2), bench.device)
    ours = training(build(part, "auto", bench.device, torch.channels_last))
    _, ratio = bench.pair(ours, lambda: [bare.local_training(client) for client in (0, 1)])
    return 2 * ratio / part.num_clients


def hours(chosen: Iterable[Cell], costs: Mapping[str, Cost]) -> float:
    """Return what these cells take, one after the other."""
    return sum(costs[c.settings["dataset"]].seconds(passes(c), c.settings["num_rounds"]) for c in chosen) / 3600
