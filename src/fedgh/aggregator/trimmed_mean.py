"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.aggregator.base import CoordinateRule, require


@dataclass(frozen=True)
class TrimmedMean(CoordinateRule):
    """Leave out the largest and the smallest values of every coordinate and average the rest.

    Tolerates a share of ``trim_fraction`` of the clients being corrupted. Ignores how many examples clients have.

    Attributes:
        trim_fraction: Share of the clients left out at each end, in [0, 0.5); ``floor(trim_fraction * K)`` clients.

    Reference:
        Yin et al.: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, option II.
    Departures:
        Of updates over a round of local training, not of gradients.
    """

    trim_fraction: float

    def __post_init__(self) -> None:
        require(0 <= self.trim_fraction < 0.5, "trim_fraction", "in [0, 0.5)", self.trim_fraction)

    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002
        """Reduce ``(clients, columns)`` to ``(columns,)``."""
        trimmed = int(self.trim_fraction * len(values) + 1e-9)  # 0.1 of 30 is 3, whatever binary fractions say
        return values.sort(dim=0).values[trimmed : len(values) - trimmed].mean(0)
