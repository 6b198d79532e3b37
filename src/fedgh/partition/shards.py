"""Label skew by shards of the sorted data, as in the first paper on federated averaging."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fedgh.core.errors import PartitionError
from fedgh.partition.base import IntArray, Partition, require, require_num_clients, require_samples


@dataclass(frozen=True)
class Shards:
    """Sort the samples by label, cut them into shards of one size, and deal each client the same number of shards.

    A client then has at most ``shards_per_client`` classes, one more for each of its shards that lies across a border
    between classes. Shard sizes differ by at most one where they cannot be equal.

    Attributes:
        num_clients: Number of clients K.
        shards_per_client: 2 in the paper.

    Reference:
        McMahan et al., AISTATS 2017 (pathological non-IID MNIST: 200 shards of 300, 2 for each of 100 clients);
        ``ShardPartitioner`` of flwr-datasets.
    """

    num_clients: int
    shards_per_client: int

    def __post_init__(self) -> None:
        require_num_clients(self.num_clients)
        require(
            self.shards_per_client >= 1,
            f"partition.shards_per_client must be at least 1, got {self.shards_per_client}; try 2.",
        )

    def __call__(self, labels: IntArray, num_classes: int, rng: np.random.Generator) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`.

        Raises:
            PartitionError: If there are fewer samples than shards.
        """
        number = self.num_clients * self.shards_per_client
        labels = require_samples(labels, num_classes, self.num_clients, min_size=1)
        if len(labels) < number:
            raise PartitionError(
                f"{len(labels)} samples cannot be cut into {number} shards; use fewer partition.num_clients or "
                "partition.shards_per_client."
            )
        shuffled = rng.permutation(len(labels))  # so that which samples of a class share a shard is left to chance
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        owner_of_shard = rng.permutation(np.arange(number) % self.num_clients)
        owners = np.empty(len(labels), dtype=np.int64)
        for shard, rows in enumerate(np.array_split(order, number)):
            owners[rows] = owner_of_shard[shard]
        parameters = {"name": "shards", **asdict(self)}
        return Partition.from_owners(labels, num_classes, owners, self.num_clients, parameters)
