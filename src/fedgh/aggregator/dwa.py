"""DWA: client weights that grow where the loss falls slowly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require
from fedgh.aggregator.memory import recall
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class DWA(Aggregator):
    """Weigh clients by ``softmax(r / T)``, r_k the last loss of client k over the one before.

    Reads no Gram matrix at all, and ignores how many examples clients have. At T = 2 and ratios near one the weights
    stay within a few percent of even ones.

    Attributes:
        temperature: T, positive; 2 in the paper.

    Reference:
        Liu, Johns, Davison: "End-to-End Multi-Task Learning with Attention", CVPR 2019, equation 7, and the authors'
        code (lorenmt/mtan).
    Departures:
        A loss is the mean over a client's local steps of a round, this one's being the last: the server weighs updates
        after they are made. Rounds are those that a client took part in; with fewer than two r is 1. The weights sum to
        one, the paper's to the number of tasks.
    """

    temperature: float

    uses_weights = False
    stateful = True

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", "positive", self.temperature)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Weigh, combine; see :meth:`Aggregator.__call__`."""
        ids, present, values = recall(state, cohort, losses=0.0)
        before = values["losses"][present]
        rates = torch.where(before > 0, cohort.losses / before, 1.0)
        values["losses"][present] = cohort.losses
        coefficients = (rates / self.temperature).softmax(0)
        return Aggregate(updates.combine(coefficients), coefficients, state={"client_ids": ids, **values})
