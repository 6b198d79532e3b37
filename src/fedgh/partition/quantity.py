"""Clients of very different sizes whose labels are alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fedgh.partition.base import (
    IntArray,
    Partition,
    cut,
    redraw,
    require,
    require_num_clients,
    require_samples,
)


@dataclass(frozen=True)
class Quantity:
    """Draw the clients' shares of all samples from a Dirichlet distribution, and deal samples at random.

    ``q ~ Dir_K(alpha 1)``; the shuffled samples are cut at ``floor(cumsum(q) N)``, whatever their labels. Redrawn until
    every client has ``min_size`` samples.

    Attributes:
        num_clients: Number of clients K.
        alpha: Concentration; 0.5 gives sizes that differ much, 100 nearly equal ones.
        min_size: Fewest samples a client may have, at least 1.
        max_redraws: Redraws before giving up.

    Reference:
        "Quantity skew" of NIID-Bench, Li et al., ICDE 2022. flwr-datasets' ``LinearPartitioner``, ``SquarePartitioner``
        and ``ExponentialPartitioner`` skew sizes by a fixed law instead.
    """

    num_clients: int
    alpha: float
    min_size: int
    max_redraws: int

    def __post_init__(self) -> None:
        require_num_clients(self.num_clients)
        require(self.alpha > 0, f"partition.alpha must be positive, got {self.alpha}; try 0.5 to 100 (nearly equal).")
        require(self.min_size >= 1, f"partition.min_size must be at least 1, got {self.min_size}; try 1.")
        require(self.max_redraws >= 0, f"partition.max_redraws must not be negative, got {self.max_redraws}; try 1000.")

    def __call__(self, labels: IntArray, num_classes: int, rng: np.random.Generator) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`."""
        labels = require_samples(labels, num_classes, self.num_clients, self.min_size)

        def draw() -> IntArray:
            shares = (
                np.full(self.num_clients, 1.0) if np.isinf(self.alpha) else rng.dirichlet([self.alpha] * len(clients))
            )
            return cut(shares, len(labels))[:, None]

        clients = np.arange(self.num_clients)
        sizes, redraws = redraw(draw, self.min_size, self.max_redraws)
        owners = rng.permutation(np.repeat(clients, sizes[:, 0]))
        parameters = {"name": "quantity", **asdict(self), "redraws": redraws}
        return Partition.from_owners(labels, num_classes, owners, self.num_clients, parameters)
