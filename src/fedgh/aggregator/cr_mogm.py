"""CR-MOGM: any rule's coefficients, averaged over the rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require
from fedgh.aggregator.memory import places_by_id
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix

INNER = "rule/"


@dataclass(frozen=True)
class CRMOGM(Aggregator):
    """Follow another rule's coefficients slowly: ``x <- alpha x + (1 - alpha) x^``, the update is ``x @ U``.

    Averaging takes away the noise of single rounds, and with it what the rule promises of them (that nobody is
    opposed). Starts at the rule's own coefficients.

    Attributes:
        rule: Gives x^, one coefficient a client, rescaled as it says.
        alpha: How much of the past is kept, in [0, 1]; 0 is the rule itself. The paper raises it towards one as the
            learning rate falls.

    Reference:
        Zhou et al.: "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond", NeurIPS 2022,
        as implemented in TorchJD; the authors' code was not at hand.
    Departures:
        Coefficients belong to client ids: who is absent keeps them, who is new starts at the rule's. alpha is constant.
    """

    rule: Aggregator
    alpha: float

    stateful = True

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "alpha", "in [0, 1]", self.alpha)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Ask the rule, average, combine; see :meth:`Aggregator.__call__`.

        Raises:
            ConfigurationError: If the rule does not give one coefficient a client.
        """
        inner = {name.removeprefix(INNER): value for name, value in state.items() if name.startswith(INNER)}
        result = self.rule(updates, gram, cohort, inner)
        fresh = result.coefficients
        if fresh is None or fresh.dim() > 1:
            raise ConfigurationError(
                f"aggregator.rule {type(self.rule).__name__} does not give one coefficient a client, which is what is "
                "averaged; choose one that does, such as aggregator@aggregator.rule=mgda"
            )
        ids, known, present = places_by_id(state.get("client_ids"), cohort)
        averages = torch.zeros(len(ids), dtype=torch.float64)
        averages[present] = fresh
        if len(known):
            averages[known] = state["coefficients"]
        coefficients = self.alpha * averages[present] + (1 - self.alpha) * fresh
        averages[present] = coefficients
        memory = {INNER + name: value for name, value in result.state.items()}
        state = {"client_ids": ids, "coefficients": averages, **memory}
        return Aggregate(updates.combine(coefficients), coefficients, state=state)
