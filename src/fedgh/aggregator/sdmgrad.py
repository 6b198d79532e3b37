"""SDMGrad: the shortest convex combination, tied to the mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.aggregator.base import GramRule, require
from fedgh.aggregator.qp import nearest_to_zero
from fedgh.aggregator.spectrum import square_root, unit_gram
from fedgh.core.types import Cohort


@dataclass(frozen=True)
class SDMGrad(GramRule):
    """Add so much of the mean to MGDA's combination that nobody is left out.

    ``x = argmin { ||(x + lam p) @ U|| : x >= 0, sum x = 1 }``; the update is ``(x + lam p) @ U / (1 + lam)``. Every
    client has at least ``lam / (1 + lam)`` of its weight.

    Attributes:
        lam: How much of the mean, >= 0; 0 is MGDA, and large is the mean. 0.6 in the authors' class, 0.3 elsewhere.

    Reference:
        Xiao, Ban, Ji: "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", NeurIPS
        2023, from the authors' code (OptMN-Lab/sdmgrad).
    Departures:
        Solved exactly, one round at a time: the released twenty steps of size 10 with momentum do not converge (for M =
        diag(1, 4), even p and lam 0.3 they end at x = (0.03, 0.97), where (0.89, 0.11) is best). One sample stands for
        three, as it does in the release. p are the clients' weights, their sum is the update's.
    """

    lam: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "0 or positive", self.lam)

    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return ``(x + lam p) / (1 + lam)``, ``(clients,)``, non-negative."""
        total = cohort.weights.sum()
        pull = self.lam * cohort.weights / total
        rows = square_root(unit_gram(gram)[0]) * gram.diagonal().sqrt()[:, None]
        return (nearest_to_zero(rows + pull @ rows) + pull) * total / (1 + self.lam)
