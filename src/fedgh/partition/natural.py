"""The data's own clients: whoever wrote, spoke or photographed the examples, or the domain they come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from fedgh.core.errors import ConfigurationError, PartitionError
from fedgh.partition.base import IntArray, Partition, require_num_clients, require_samples


@dataclass(frozen=True)
class Natural:
    """Give each client the samples that are its own, of the test split as well.

    Clients are numbered in the order of the data set's ids; ids without training samples are left out, and what they
    own of the test split is nobody's. Each client is then evaluated on its own test samples.

    Attributes:
        by: ``client``: the data set's client ids; ``domain``: its domains.
        num_clients: Number of clients K: whole natural ones are dealt out to so many, at random, as evenly in number as
            can be; ``None``: one each.
    """

    by: str
    num_clients: int | None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.by not in ("client", "domain"):
            raise ConfigurationError(f"partition.by must be client or domain, got {self.by!r}.")
        if self.num_clients is not None:
            require_num_clients(self.num_clients)

    def __call__(
        self,
        labels: IntArray,
        num_classes: int,
        rng: np.random.Generator,
        client_ids: IntArray | None = None,
        test_client_ids: IntArray | None = None,
        domains: IntArray | None = None,
        test_domains: IntArray | None = None,
    ) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`.

        Args:
            labels: See there.
            num_classes: See there.
            rng: See there; unused if ``num_clients`` is ``None``.
            client_ids: Natural client of each training sample, ``(samples,)``.
            test_client_ids: Of each test sample.
            domains: Domain of each training sample.
            test_domains: Of each test sample.

        Raises:
            PartitionError: If the data set has no such ids, or fewer natural clients than ``num_clients``.
        """
        ids, test_ids = (client_ids, test_client_ids) if self.by == "client" else (domains, test_domains)
        if ids is None:
            raise PartitionError(
                f"partition=natural needs a data set that knows the {self.by} of each example; name the column that "
                f"holds it (dataset.{self.by}_column=...), or choose another partition."
            )
        known, group = np.unique(ids, return_inverse=True)
        num_clients = len(known) if self.num_clients is None else self.num_clients
        if num_clients > len(known):
            raise PartitionError(
                f"partition.num_clients is {num_clients}, but the data has {len(known)} natural clients; use at most "
                "so many, or null for one each."
            )
        labels = require_samples(labels, num_classes, num_clients, min_size=1)
        owner = (
            np.arange(len(known)) if self.num_clients is None else rng.permutation(np.arange(len(known)) % num_clients)
        )
        parameters = {"name": "natural", **asdict(self)}
        partition = Partition.from_owners(labels, num_classes, owner[group], num_clients, parameters)
        if test_ids is None:
            return partition
        place = np.minimum(np.searchsorted(known, test_ids), len(known) - 1)
        test_owner = np.where(known[place] == test_ids, owner[place], -1)
        own = tuple(np.flatnonzero(test_owner == client_id).astype(np.int64) for client_id in range(num_clients))
        return replace(partition, test_indices=own)
