"""ConFREE: PCGrad's mean, then CAGrad's step, for every parameter tensor by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.ball import step_to_worst_off
from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of, rescaled
from fedgh.aggregator.projection import harmonize, random_orders
from fedgh.core.groups import group_grams, group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class ConFREE(Aggregator):
    """From the mean of harmonized updates, step to where the worst-off client gains most.

    Per group: g0 is the plain mean of the updates, each projected against those it opposes in random order (PCGrad);
    then ``d = argmax { min_k <g_k, d> : ||d - g0|| <= alpha ||g0|| }`` (CAGrad), divided by ``1 + alpha^2``. With no
    conflict it is not the mean; one client comes back as it is. Ignores how many examples clients have.

    Attributes:
        rescale: See :class:`~fedgh.aggregator.base.GramRule`.
        alpha: Radius of the ball, relative to the length of g0, >= 0; the files of the release have no default, 0.5 is
            CAGrad's.
        projection: ``exact``, or ``released``, which does not divide by ``||g_j||^2`` and so projects as intended only
            where updates have length one: shorter ones keep their conflicts, longer ones are thrown far off.
        scope: What is combined by itself: every ``block`` (parameter tensor, as released), ``layer`` or the ``model``.

    Reference:
        Zheng et al.: "ConFREE: Conflict-free Client Update Aggregation for Personalized Federated Learning", AAAI 2025,
        from the released code (StuZheng/ConFREE); the paper itself was not at hand.
    Departures:
        The step is solved exactly (:mod:`ball`); the release adds 1e-8 under its roots and uses a general solver. One
        order a client and round, shared by all tensors. What FedDRM's code calls ConFREE is ``aggregator=fedgh`` with
        ``order=simultaneous``.
    """

    rescale: str
    alpha: float
    projection: str
    scope: str

    uses_weights = False
    random = True
    scale_preserving = False
    needs = "layers"

    def __post_init__(self) -> None:
        require_one_of("rescale", self.rescale, ("none", "fedavg_norm", "sum_to_one"))
        require(self.alpha >= 0, "alpha", "0 or positive", self.alpha)
        require_one_of("projection", self.projection, ("exact", "released"))
        require_one_of("scope", self.scope, ("model", "layer", "block"))

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Solve group by group; see :meth:`Aggregator.__call__`."""
        group = group_of_block(updates.blocks, self.scope)
        grams, orders = group_grams(updates, group), random_orders(cohort)
        coefficients = torch.stack([self.coefficients(part, orders) for part in grams])
        coefficients = rescaled(coefficients, grams, cohort.weights, self.rescale)[group]
        return Aggregate(updates.combine(coefficients), coefficients)

    def coefficients(self, gram: Tensor, orders: Tensor) -> Tensor:
        """Return the coefficients of a group, ``(clients,)``.

        Args:
            gram: M, ``(clients, clients)`` float64.
            orders: Whom every client meets, ``(clients, clients - 1)``.
        """
        if len(gram) == 1:
            return torch.ones(1, dtype=torch.float64)
        mixing = harmonize(gram, orders) if self.projection == "exact" else _harmonize_unnormalized(gram, orders)
        guide = mixing.mean(0)
        return (guide + step_to_worst_off(gram, guide, self.alpha)) / (1 + self.alpha**2)


def _harmonize_unnormalized(gram: Tensor, orders: Tensor) -> Tensor:
    """Return C of the released projections, ``h <- h - <h, g_j> g_j`` where they conflict, ``(clients, clients)``."""
    rows, mixing = torch.arange(len(gram)), torch.eye(len(gram), dtype=torch.float64)
    for projector in orders.T:
        mixing[rows, projector] += torch.relu(-(mixing * gram[projector]).sum(1))
    return mixing
