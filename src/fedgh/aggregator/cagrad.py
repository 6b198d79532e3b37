"""CAGrad: conflict-averse gradient descent, in Gram space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.ball import step_to_worst_off
from fedgh.aggregator.base import GramRule, require
from fedgh.core.types import Cohort


@dataclass(frozen=True)
class CAGrad(GramRule):
    """Among the vectors near the mean, take the one that helps the worst-off client most.

    ``argmax { min_k <r_k, d> : ||d - g0|| <= c ||g0|| }`` with rows ``r_k = K p_k g_k``, whose plain mean is the
    weighted mean g0. The solution is ``d = g0 + c ||g0|| / ||x @ R|| * x @ R``, where x on the simplex minimizes
    ``<x @ R, g0> + c ||g0|| ||x @ R||``.

    Attributes:
        c: Radius of the ball around g0, relative to its norm, >= 0; 0 is the mean, and from 1 on nothing ties the
            result to the mean objective any more.

    Reference:
        Liu et al.: "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, Algorithm 1.
    Departures:
        Solved in Gram space, exactly (:mod:`ball`), instead of by a general solver.
    """

    c: float

    scale_preserving = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.c >= 0, "c", "0 or positive", self.c)

    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return ``p + c ||g0|| / ||x @ R|| * K p x``, ``(clients,)``."""
        scale = len(cohort) * cohort.weights
        even = torch.full_like(cohort.weights, 1 / len(cohort))
        return cohort.weights + scale * step_to_worst_off(scale[:, None] * gram * scale, even, self.c)
