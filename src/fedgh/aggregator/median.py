"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.aggregator.base import CoordinateRule


@dataclass(frozen=True)
class Median(CoordinateRule):
    """Take the median of every coordinate; the mean of the two middle values where their number is even.

    Tolerates up to half of the clients being corrupted. Ignores how many examples clients have.

    Reference:
        Yin et al.: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, option I.
    Departures:
        Of updates over a round of local training, not of gradients.
    """

    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002
        """Reduce ``(clients, columns)`` to ``(columns,)``."""
        num_clients = len(values)
        middle = values.sort(dim=0).values[(num_clients - 1) // 2 : num_clients // 2 + 1]
        return middle.mean(0)
