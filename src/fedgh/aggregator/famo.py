"""FAMO: client weights that slow down those whose loss falls fastest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require
from fedgh.aggregator.memory import recall
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix

_SMALL, _BETAS = 1e-8, (0.9, 0.999)


@dataclass(frozen=True)
class FAMO(Aggregator):
    """Weigh clients by ``z_k / l_k``, normalized, with z a softmax of logits that learn from how losses changed.

    With l and l' a client's losses of two rounds in a row and ``delta_k = log l_k - log l'_k``, the gradient of logit
    k is ``z_k (delta_k - sum_j z_j delta_j)``, and Adam takes a step: who improved more than the others loses weight.
    Reads no Gram matrix at all, and ignores how many examples clients have.

    Attributes:
        lr: Of Adam, > 0; each of its first steps is about this long, whatever the gradient.
        weight_decay: Pull of the logits towards zero, added to their gradient, >= 0; 0.001 in the paper's Algorithm 2.

    Reference:
        Liu, Feng, Stone, Liu: "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, Algorithm 2, and the authors'
        code (Cranial-XIX/FAMO).
    Departures:
        A loss is the mean over a client's local steps of a round; the paper has that of the same batch before and after
        one step. Logits and Adam's moments belong to client ids and move only for clients that took part in this round
        and the one before, z being a softmax over those. No clipping of the logits' gradient.
    """

    lr: float
    weight_decay: float

    uses_weights = False
    stateful = True

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "positive", self.lr)
        require(self.weight_decay >= 0, "weight_decay", "0 or positive", self.weight_decay)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Learn from the losses, weigh, combine; see :meth:`Aggregator.__call__`."""
        ids, present, values = recall(state, cohort, logits=0.0, first=0.0, second=0.0, updates=0.0)
        losses = cohort.losses.clamp_min(0) + _SMALL
        now = torch.tensor(cohort.client_ids)
        if "last_ids" in state:
            again, before = torch.isin(now, state["last_ids"]), torch.isin(state["last_ids"], now)
            change = (state["last_losses"][before] / losses[again]).log()  # both ascend with the id
            self._learn(values, present[again], change)
        shares = values["logits"][present].softmax(0) / losses
        coefficients = shares / shares.sum()
        state = {"client_ids": ids, "last_ids": now, "last_losses": losses, **values}
        return Aggregate(updates.combine(coefficients), coefficients, state=state)

    def _learn(self, values: dict[str, Tensor], where: Tensor, change: Tensor) -> None:
        """Take a step of Adam at these places; ``change`` is delta."""
        logits = values["logits"][where]
        z, (beta, beta_2) = logits.softmax(0), _BETAS
        gradient = z * (change - z @ change) + self.weight_decay * logits
        values["updates"][where] += 1
        first = beta * values["first"][where] + (1 - beta) * gradient
        second = beta_2 * values["second"][where] + (1 - beta_2) * gradient**2
        steps = values["updates"][where]
        values["first"][where], values["second"][where] = first, second
        step = first / (1 - beta**steps) / ((second / (1 - beta_2**steps)).sqrt() + _SMALL)
        values["logits"][where] = logits - self.lr * step
