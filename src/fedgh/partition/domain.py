"""Clients of one domain each, or of a mix of domains; inside a domain by Dirichlet shares of the classes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from fedgh.core.errors import PartitionError
from fedgh.partition.base import IntArray, Partition, cut, owners_from_counts, redraw, require, require_samples


@dataclass(frozen=True)
class Domain:
    """Deal every domain's samples to clients of its own, ``clients_per_domain`` of them, or to everybody.

    Every sample is dealt at home with probability ``concentration``: to one of its domain's clients, whose shares of
    each class are ``Dir(alpha 1)``, as in ``partition=dirichlet``. All other samples are dealt to all clients at
    random, in equal numbers. So 1 gives clients of one domain each, and 0 is IID. Redrawn until every client has
    ``min_size`` samples. Client ``d clients_per_domain + j`` is the j-th of domain d, in the order of the domains.

    Attributes:
        clients_per_domain: Clients of each domain.
        concentration: In [0, 1]; the lambda from IID (0) to one domain a client (1).
        alpha: Of the classes inside a domain; ``inf``: equal shares of every class.
        min_size: Fewest samples a client may have, at least 1.
        max_redraws: Redraws before giving up.

    Reference:
        One domain a client: FedBN, Li et al., ICLR 2021; the mixture is the idea of Bai et al., "Benchmarking
        Algorithms for Federated Domain Generalization", ICLR 2024, whose lambda is 1 where ours is 0.
    Departures:
        Theirs deals whole domains by a heuristic of sizes; here each sample draws.
    """

    clients_per_domain: int
    concentration: float
    alpha: float
    min_size: int
    max_redraws: int

    def __post_init__(self) -> None:
        require(
            self.clients_per_domain >= 1,
            f"partition.clients_per_domain must be at least 1, got {self.clients_per_domain}; try 1.",
        )
        require(
            0 <= self.concentration <= 1,
            f"partition.concentration must be in [0, 1], got {self.concentration}; 1: one domain a client, 0: IID.",
        )
        require(self.alpha > 0, f"partition.alpha must be positive, got {self.alpha}; try 0.3, or .inf for no skew.")
        require(self.min_size >= 1, f"partition.min_size must be at least 1, got {self.min_size}; try 1.")
        require(self.max_redraws >= 0, f"partition.max_redraws must not be negative, got {self.max_redraws}; try 1000.")

    def __call__(
        self, labels: IntArray, num_classes: int, rng: np.random.Generator, domains: IntArray | None = None
    ) -> Partition:
        """Deal the samples; see :class:`fedgh.partition.base.Partitioner`.

        Args:
            labels: See there.
            num_classes: See there.
            rng: See there.
            domains: Domain of each training sample, ``(samples,)``.

        Raises:
            PartitionError: If the data set has no domains, or no admissible partition can be drawn.
        """
        if domains is None:
            raise PartitionError(
                "partition=domain needs a data set that knows the domain of each example, such as "
                "dataset=rotated_mnist, or name the column that holds it (dataset.domain_column=...)."
            )
        known, place = np.unique(domains, return_inverse=True)
        num_clients = len(known) * self.clients_per_domain
        labels = require_samples(labels, num_classes, num_clients, self.min_size)
        home = rng.random(len(labels)) < self.concentration
        away = np.flatnonzero(~home)
        guests = rng.permutation(np.arange(len(away)) % num_clients)
        cells = place * num_classes + labels  # a class in a domain
        sizes = np.bincount(cells[home], minlength=len(known) * num_classes)

        def draw() -> IntArray:
            """Return counts of clients by cells, ``(clients, cells)``, plus the guests in a last column."""
            counts = np.zeros((num_clients, len(sizes)), dtype=np.int64)
            for cell in np.flatnonzero(sizes):
                first = cell // num_classes * self.clients_per_domain
                counts[first : first + self.clients_per_domain, cell] = cut(self._shares(rng), int(sizes[cell]))
            return np.column_stack([counts, np.bincount(guests, minlength=num_clients)])

        counts, redraws = redraw(draw, self.min_size, self.max_redraws)
        owners = np.empty(len(labels), dtype=np.int64)
        owners[home] = owners_from_counts(cells[home], counts[:, :-1], rng)
        owners[away] = guests
        parameters = {"name": "domain", **asdict(self), "redraws": redraws}
        return Partition.from_owners(labels, num_classes, owners, num_clients, parameters)

    def _shares(self, rng: np.random.Generator) -> np.ndarray:
        """Draw q of one cell, ``(clients_per_domain,)``."""
        if math.isinf(self.alpha):
            return np.ones(self.clients_per_domain)
        return rng.dirichlet(np.full(self.clients_per_domain, self.alpha))
