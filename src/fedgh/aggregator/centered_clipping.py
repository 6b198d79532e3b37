"""Centered clipping: the last aggregate, moved by no more than a clipped step towards every client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class CenteredClipping(Aggregator):
    """Start at the last round's aggregate v; so many times, move it to the mean of the updates clipped around it.

    ``v <- v + 1/K sum_k (g_k - v) min(1, limit / ||g_k - v||)``, with the norm of the whole model; v is 0 at first,
    where one step is plain clipping. In Gram space v is one more row. Ignores how many examples clients have.

    Attributes:
        max_norm: The limit tau, positive.
        unit: Of ``max_norm``: ``absolute``, the norm itself, as published, which must follow the size of the updates;
            ``median``, multiples of the median distance to v at every step, of ours.
        steps: L, at least 1.

    Reference:
        Karimireddy, He, Jaggi: "Learning from History for Byzantine Robust Optimization", ICML 2021, and the authors'
        code (epfml/byzantine-robust-optimizer).
    Departures:
        The paper's updates are momenta that workers keep (0.9), without which its guarantee does not hold; here they
        are what a round of local training made.
    """

    max_norm: float
    unit: str
    steps: int

    uses_weights = False
    stateful = True
    scale_preserving = False

    def __post_init__(self) -> None:
        require(self.max_norm > 0, "max_norm", "positive", self.max_norm)
        require_one_of("unit", self.unit, ("absolute", "median"))
        require(self.steps >= 1, "steps", "at least 1", self.steps)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Clip around the last aggregate; see :meth:`Aggregator.__call__`."""
        center = state.get("center", torch.zeros(updates.blocks[-1].stop))
        products, share = updates.gram_with(center), 1 / len(cohort)
        coefficients = torch.zeros(len(cohort) + 1, dtype=torch.float64)
        coefficients[-1] = 1.0
        for _ in range(self.steps):
            distances = distances_to(products, coefficients)[:-1]
            limit = self.max_norm * (distances.quantile(0.5) if self.unit == "median" else 1.0)
            scale = torch.where(distances > limit, limit / distances, 1.0)
            coefficients *= 1 - scale.mean()
            coefficients[:-1] += share * scale
        update = updates.combine(coefficients[:-1])
        update = update + coefficients[-1].item() * center.to(update)
        of_clients = coefficients[:-1] if products[-1, -1] == 0 or coefficients[-1] == 0 else None
        return Aggregate(update, of_clients, state={"center": update.cpu()})


def distances_to(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Return ``||u_k - c @ U||`` of all rows, ``(rows,)``; 0 where rounding of a float64 Gram matrix hides it.

    Args:
        gram: Of products formed in float64, ``(rows, rows)``.
        coefficients: c, ``(rows,)``.
    """
    products, squares = gram @ coefficients, gram.diagonal()
    squared = squares - 2 * products + coefficients @ products
    hidden = 4 * torch.finfo(gram.dtype).eps * (squares + coefficients.abs() @ squares)
    return torch.where(squared > hidden, squared, 0.0).sqrt()
