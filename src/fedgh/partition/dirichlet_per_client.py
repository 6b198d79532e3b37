"""Label skew by a Dirichlet mix of classes for each client, all clients of one size."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fedgh.partition.base import IntArray, Partition, require, require_num_clients, require_samples


@dataclass(frozen=True)
class DirichletPerClient:
    """Give each client a mix of classes of its own, and as many samples as any other.

    For each client k draw ``q_k ~ Dir_C(alpha p)`` with p the shares of the classes. Clients then take turns, one
    sample each, in an order drawn anew every turn: client k draws a class by ``q_k`` among those that are not used up
    yet, and takes one of its samples at random. Where its mix has only used-up classes left, it draws by what is left
    of each class. Sizes differ by at most one.

    Attributes:
        num_clients: Number of clients K.
        alpha: Concentration; 0.1 is strongly skewed, 100 nearly IID.

    Reference:
        Hsu et al., 2019 (arXiv:1909.06335), section 3; Acar et al. (FedDyn), ICLR 2021, and flwr-datasets'
        ``InnerDirichletPartitioner`` likewise. Its ``DirichletPartitioner`` follows the law per class.
    Departures:
        Hsu et al. fill one client after the other, so that the last ones get what the others have left; taking turns
        spreads that over all.
    """

    num_clients: int
    alpha: float

    def __post_init__(self) -> None:
        require_num_clients(self.num_clients)
        require(
            0 < self.alpha < float("inf"),
            f"partition.alpha must be positive and finite, got {self.alpha}; try 0.1 (strongly skewed) to 100 (nearly "
            "IID), or partition=iid.",
        )

    def __call__(self, labels: IntArray, num_classes: int, rng: np.random.Generator) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`."""
        labels = require_samples(labels, num_classes, self.num_clients, min_size=1)
        left = np.bincount(labels, minlength=num_classes)
        present = np.flatnonzero(left)
        mixes = np.zeros((self.num_clients, num_classes))
        mixes[:, present] = rng.dirichlet(self.alpha * left[present] / len(labels), size=self.num_clients)
        waiting = [rng.permutation(np.flatnonzero(labels == label)).tolist() for label in range(num_classes)]
        owners = np.empty(len(labels), dtype=np.int64)
        for start in range(0, len(labels), self.num_clients):
            turn = rng.permutation(self.num_clients)[: len(labels) - start]
            for client_id, uniform in zip(turn, rng.random(len(turn)), strict=True):
                chances = np.cumsum(mixes[client_id] * (left > 0))
                if not chances[-1] > 0:
                    chances = np.cumsum(left.astype(np.float64))
                label = int(np.searchsorted(chances, uniform * chances[-1], side="right"))
                label = min(
                    label, int(np.flatnonzero(np.diff(chances, prepend=0.0))[-1])
                )  # not past the last by rounding
                left[label] -= 1
                owners[waiting[label].pop()] = client_id
        parameters = {"name": "dirichlet_per_client", **asdict(self)}
        return Partition.from_owners(labels, num_classes, owners, self.num_clients, parameters)
