"""MoDo: one projected step a round on MGDA's weights, which are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of, rescaled
from fedgh.aggregator.memory import recall
from fedgh.aggregator.qp import project_on_simplex
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class MoDo(Aggregator):
    """Let the weights of the clients' updates move slowly towards those of the shortest combination.

    ``x <- project(x - gamma (M x / m + rho x))`` onto the simplex, m the mean of M's diagonal, starting even; the
    update is ``x @ U``. Ignores how many examples clients have.

    Attributes:
        rescale: See :class:`~fedgh.aggregator.base.GramRule`.
        gamma: Step size, positive.
        rho: Pull towards even weights, >= 0.

    Reference:
        Chen, Fernando, Ying, Chen: "Three-Way Trade-Off in Multi-Objective Learning", NeurIPS 2023, JMLR 2024, from the
        authors' code (heshandevaka/Trade-Off-MOL).
    Departures:
        The authors take ``J_1 J_2^T`` of two independent samples and move by both; clients send one update, and M's
        diagonal counts its noise, so that clients with noisy updates lose weight. Divided by m, which makes gamma
        independent of the updates' size. A client's x is kept as a multiple of an even share, one for newcomers,
        and the participants' are made to sum to one.
    """

    rescale: str
    gamma: float
    rho: float

    uses_weights = False
    stateful = True

    def __post_init__(self) -> None:
        require_one_of("rescale", self.rescale, ("none", "fedavg_norm", "sum_to_one"))
        require(self.gamma > 0, "gamma", "positive", self.gamma)
        require(self.rho >= 0, "rho", "0 or positive", self.rho)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Take a step, combine; see :meth:`Aggregator.__call__`."""
        ids, present, values = recall(state, cohort, shares=1.0)
        x, scale = values["shares"][present], gram.diagonal().mean()
        x = x / x.sum() if x.sum() > 0 else torch.full_like(x, 1 / len(x))
        slope = gram @ x / torch.where(scale > 0, scale, 1.0) + self.rho * x
        x = project_on_simplex(x - self.gamma * slope)
        values["shares"][present] = x * len(x)
        coefficients = rescaled(x, gram, cohort.weights, self.rescale)
        return Aggregate(updates.combine(coefficients), coefficients, state={"client_ids": ids, **values})
