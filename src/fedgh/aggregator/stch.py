"""STCH: client weights of the smooth Tchebycheff scalarization, which favours the worst off."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.aggregator.memory import recall
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class STCH(Aggregator):
    """Weigh clients by a softmax of their losses, the sharper the smaller ``mu``; normalized to the sum of the weights.

    ``log``, the authors' code: ``softmax(log(l / N) / mu)_k / l_k``, N_k the loss at the end of a warm-up, in which
    weights are ``1 / l_k``. With mu = 1, the release's, these are ``1 / N_k`` up to a common factor: constant ratios.
    ``plain``, the paper's formula, of the clients' weights p: ``p_k softmax(p l / mu)_k``; the more clients, the
    smaller the p and the flatter the softmax at one mu. Reads no Gram matrix at all.

    Attributes:
        form: ``log``, which ignores the weights, or ``plain``.
        mu: Smoothness, positive; the paper tries 0.01 to 1. Towards 0 the worst-off client alone counts.
        warmup_rounds: Of ``log``: how often a client takes part before its N is set, >= 0; 4 epochs in the release.

    Reference:
        Lin et al.: "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, and the authors'
        code (Xi-L/STCH).
    Departures:
        A loss is the mean over a client's local steps of a round. Each client has a warm-up of its own. The ideal point
        is 0.
    """

    form: str
    mu: float
    warmup_rounds: int

    uses_weights = False
    stateful = True

    def __post_init__(self) -> None:
        require_one_of("form", self.form, ("log", "plain"))
        require(self.mu > 0, "mu", "positive", self.mu)
        require(self.warmup_rounds >= 0, "warmup_rounds", "0 or more", self.warmup_rounds)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Weigh, combine; see :meth:`Aggregator.__call__`."""
        ids, present, values = recall(state, cohort, nadir=0.0, rounds=0.0)
        losses, total = cohort.losses.clamp_min(1e-12), cohort.weights.sum()
        warming = values["rounds"][present] <= self.warmup_rounds
        values["nadir"][present] = losses.where(warming, values["nadir"][present])
        values["rounds"][present] += 1
        if self.form == "log":
            shares = ((losses / values["nadir"][present]).log() / self.mu).softmax(0) / losses
        else:
            shares = cohort.weights * (cohort.weights / total * losses / self.mu).softmax(0)
        coefficients = shares / shares.sum() * total
        return Aggregate(updates.combine(coefficients), coefficients, state={"client_ids": ids, **values})
