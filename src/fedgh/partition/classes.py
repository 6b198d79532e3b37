"""Label skew by whole classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fedgh.core.errors import PartitionError
from fedgh.partition.base import IntArray, Partition, require_num_clients, require_samples


@dataclass(frozen=True)
class Classes:
    """Give each client all samples of its own classes.

    A random permutation of the C classes is cut into K parts; client k owns every sample of the classes of part k.
    Where K does not divide C, the first ``C mod K`` clients own one class more.

    Attributes:
        num_clients: Number of clients K, at most the number of classes.

    Reference:
        FedGH, class split of figure 5 (CIFAR-100: 5 classes each at K = 20; Tiny-ImageNet: 10).
    Departures:
        The paper's cases divide evenly; spreading the remainder is ours.
    """

    num_clients: int

    def __post_init__(self) -> None:
        require_num_clients(self.num_clients)

    def __call__(self, labels: IntArray, num_classes: int, rng: np.random.Generator) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`.

        Raises:
            PartitionError: If there are more clients than classes, or a client's classes have no samples.
        """
        if self.num_clients > num_classes:
            raise PartitionError(
                f"partition.num_clients must be at most the number of classes ({num_classes}) for partition=classes, "
                f"got {self.num_clients}; use fewer clients or partition=dirichlet."
            )
        labels = require_samples(labels, num_classes, self.num_clients, min_size=1)
        parts = np.array_split(rng.permutation(num_classes), self.num_clients)
        owner_of_class = np.empty(num_classes, dtype=np.int64)
        for client_id, part in enumerate(parts):
            owner_of_class[part] = client_id
        sizes = np.bincount(owner_of_class[labels], minlength=self.num_clients)
        if sizes.min() == 0:
            unused = np.setdiff1d(np.arange(num_classes), labels)
            few = ", ".join(map(str, unused[:5])) + (", ..." if len(unused) > 5 else "")
            raise PartitionError(
                f"client {sizes.argmin()} gets no sample, since none of its classes occurs among the labels (classes "
                f"{few} have no sample: labels are expected from 0 on); use fewer clients (partition.num_clients), "
                "another seed, or partition=dirichlet."
            )
        parameters = {"name": "classes", **asdict(self)}
        return Partition.from_owners(labels, num_classes, owner_of_class[labels], self.num_clients, parameters)
