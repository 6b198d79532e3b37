"""The geometric median of the updates, and its first step: inverse distance aggregation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import GramRule, require
from fedgh.core.types import Cohort


@dataclass(frozen=True)
class GeometricMedian(GramRule):
    """Weigh every client by the inverse of its distance to the result, as often as asked, starting from the mean.

    Weiszfeld's iteration ``w_k <- p_k / ||g_k - w^T U||``, normalized to the sum of p. Many steps end at the point with
    the smallest weighted sum of distances, which tolerates up to half of the weight being corrupted. One step is IDA.

    Attributes:
        steps: Iterations, at least 1; stops early once the weights change by less than 1e-12.
        smoothing: Distances count as at least this share of the mean distance to the weighted mean, positive; keeps a
            client that coincides with the result from taking all the weight.

    Reference:
        Pillutla, Kakade, Harchaoui: "Robust Aggregation for Federated Learning", IEEE TSP 2022 (smoothed Weiszfeld);
        Yeganeh et al.: "Inverse Distance Aggregation for Federated Learning", 2020.
    Departures:
        Distances come from a Gram matrix of float64 products. IDA's are taken to the weighted mean, and multiply n_k/n.
    """

    exact = True

    steps: int
    smoothing: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        require(self.smoothing > 0, "smoothing", "positive", self.smoothing)

    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return w, ``(clients,)``, non-negative, with the sum of the weights."""
        shares = cohort.weights / cohort.weights.sum()
        distances = _distances(gram, shares)
        floor = self.smoothing * distances.mean()
        weights = shares
        for _ in range(self.steps if floor > 0 else 0):
            before = weights
            weights = shares / distances.clamp_min(floor)
            weights = weights / weights.sum()
            if bool((weights - before).abs().max() < 1e-12):
                break
            distances = _distances(gram, weights)
        return weights * cohort.weights.sum()


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    """Return ``||g_k - w^T U||``, ``(clients,)``."""
    products = gram @ weights
    squared = gram.diagonal() - 2 * products + weights @ products
    resolved = 4 * torch.finfo(gram.dtype).eps * (gram.diagonal() + weights @ gram.diagonal())
    return torch.where(squared > resolved, squared, 0.0).sqrt()
