"""How good a model is: on the official test set, and for each client on data like its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fedgh.core.flat import FlatModel
from fedgh.dataset.base import Dataset
from fedgh.metric.collection import Metrics
from fedgh.metric.summary import client_accuracy, spread
from fedgh.partition.base import Partition


class Weights(Protocol):
    """A model's numbers: a server state, or one of several models."""

    @property
    def params(self) -> Tensor:
        """``(params,)``."""

    @property
    def buffers(self) -> Tensor:
        """``(buffers,)``."""

    @property
    def counters(self) -> Tensor:
        """``(counters,)`` int64."""


@dataclass(frozen=True)
class Cells:
    """Which test examples speak for which clients: those of the cells that its training examples lie in.

    A cell is a class; where examples have domains, a class in a domain. Every test example of a cell counts by the
    cell's share of the client's training examples. Where clients own test examples, a cell is a client's own ones.

    Attributes:
        of_test: Cell of each test example, ``(examples,)`` int64; -1 where it speaks for nobody.
        num_cells: Number of cells.
        counts: Training examples of each client in each cell, ``(clients, cells)`` int64; ``None`` where cell k is
            what client k owns of the test split.
    """

    of_test: Tensor
    num_cells: int
    counts: Tensor | None

    @property
    def num_examples(self) -> Tensor:
        """How many examples each client's score stands for, ``(clients,)`` int64: test examples of its own, or n_k."""
        if self.counts is None:
            return torch.bincount(self.of_test[self.of_test >= 0], minlength=self.num_cells)
        return self.counts.sum(1)

    def client_scores(self, scores: Tensor) -> Tensor:
        """Return each client's expected score, ``(clients,)`` float64; NaN for a client without test examples.

        Args:
            scores: Of one model on each test example, ``(examples,)`` float64.
        """
        cells = self.cell_scores(scores)
        return cells if self.counts is None else client_accuracy(cells, self.counts)

    def client_score(self, scores: Tensor, client_id: int) -> float:
        """Return one client's expected score under the model that gave these scores, its own for instance."""
        cells, mine = self.cell_scores(scores), slice(client_id, client_id + 1)
        return float(cells[mine] if self.counts is None else client_accuracy(cells, self.counts[mine]))

    def rows_of(self, client_id: int) -> Tensor:
        """Return which test examples speak for a client, ``(examples,)`` bool."""
        if self.counts is None:
            return self.of_test == client_id
        return (self.of_test >= 0) & (self.counts[client_id] > 0)[self.of_test.clamp_min(0)]

    def cell_scores(self, scores: Tensor) -> Tensor:
        """Return the mean score on each cell's test examples, ``(cells,)`` float64; NaN where there are none."""
        totals = torch.bincount(self.of_test + 1, scores, minlength=self.num_cells + 1)[1:]  # nobody's come first
        return totals / self._support

    @cached_property
    def _support(self) -> Tensor:
        return torch.bincount(self.of_test + 1, minlength=self.num_cells + 1)[1:]


def cells_of(dataset: Dataset, partition: Partition) -> Cells:
    """Return which test examples speak for which clients of a partition."""
    if partition.test_indices is not None:
        owners = torch.full((len(dataset.test_inputs),), -1, dtype=torch.int64)
        for client_id, rows in enumerate(partition.test_indices):
            owners[torch.from_numpy(rows)] = client_id
        return Cells(owners, partition.num_clients, None)
    counts = torch.from_numpy(partition.class_counts)
    if dataset.domains is None or dataset.test_domains is None:
        return Cells(dataset.test_strata, dataset.num_classes, counts)
    domains, test_domains, classes = dataset.domains.cpu(), dataset.test_domains.cpu(), dataset.num_classes
    cells, size = domains * classes + dataset.train_strata.cpu(), (int(domains.max()) + 1) * classes
    own = [torch.bincount(cells[torch.from_numpy(rows)], minlength=size) for rows in partition.client_indices]
    known = test_domains <= int(domains.max())
    return Cells(torch.where(known, test_domains * classes + dataset.test_strata, -1), size, torch.stack(own))


@dataclass(frozen=True)
class Validation:
    """What was held out of the training data, see :func:`fedgh.dataset.base.hold_out`.

    Attributes:
        dataset: The run's own, with the part that was held out in the place of the test split.
        partition: The run's own, whose clients own held-out examples where they own test examples.
    """

    dataset: Dataset
    partition: Partition


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on the official test split.

    Attributes:
        scores: Of each test example by name, ``(examples,)`` float64 on the CPU; the first is the main one.
        further: Metrics of the whole split by name, as ``metric=`` chooses them.
    """

    scores: Mapping[str, Tensor]
    further: Mapping[str, float] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """Name of the main score, ``acc`` of a classification."""
        return next(iter(self.scores))

    @property
    def means(self) -> dict[str, float]:
        """Mean over the test split of every score; of one target of several, over the examples that have it."""
        means = {name: values.nanmean() if "/" in name else values.mean() for name, values in self.scores.items()}
        return {name: float(mean) for name, mean in means.items()}

    @property
    def value(self) -> float:
        """Mean of the main score, the accuracy of a classification."""
        return float(self.scores[self.main].mean())

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.scores["loss"].mean())

    def metrics(self, cells: Cells) -> dict[str, float]:
        """Return the global results and the clients' summary under their public names.

        Args:
            cells: Which test examples speak for which clients.
        """
        clients = cells.client_scores(self.scores[self.main])
        means = {f"global/test/{name}": mean for name, mean in {**self.means, **self.further}.items()}
        return {**means, **spread(clients, f"client/test/{self.main}", cells.num_examples)}


@torch.no_grad()
def evaluate(
    model: FlatModel, weights: Weights, dataset: Dataset, batch_size: int, metrics: Metrics | None = None
) -> Evaluation:
    """Evaluate a model in evaluation mode, in large batches, on the device where everything lives.

    Args:
        model: Overwritten with the weights.
        weights: The server's state, or a client's own model.
        dataset: Whose test split is used.
        batch_size: Examples per forward pass; bounds the memory, does not change the result.
        metrics: Computed once on the outputs of the whole split, beside the task's scores.
    """
    model.load(weights.params, weights.buffers, weights.counters)
    training = model.module.training
    model.module.eval()
    found: list[dict[str, Tensor]] = []
    gathered: list[Tensor] = []
    split = (dataset.normalized_test_inputs, dataset.test_targets)
    for inputs, targets in zip(*(torch.split(tensor, batch_size) for tensor in split), strict=True):
        outputs, _ = model.forward(model.params, inputs)
        found.append(dataset.task.scores(outputs, targets))
        if metrics:
            gathered.append(outputs)
    model.module.train(training)
    scores = {name: torch.cat([batch[name] for batch in found]).double().cpu() for name in found[0]}
    return Evaluation(scores, metrics(torch.cat(gathered), dataset.test_targets) if metrics else {})
