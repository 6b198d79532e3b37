"""FedExP: any rule, with a server step as long as the disagreement of its updates allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class FedExP(Aggregator):
    """Combine updates by another rule, then go ``max(1, sum_k p_k ||g_k||^2 / (2 (||u||^2 + eps)))`` times as far.

    u is the rule's update and g_k what it is the mean of: the updates as the rule bent them where it does that
    (FedGH), else as they came. Updates that cancel each other make the step long, equal ones leave it as it is. It is
    a wrapper, so that it goes with every rule, algorithm and server optimizer.

    Attributes:
        rule: What combines the updates.
        eps: Added to the squared length, >= 0, so that updates that cancel do not blow the step up; 1e-3 in the
            authors' CIFAR settings, 0.1 for EMNIST.

    Reference:
        Jhunjhunwala, Wang, Joshi: "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023, and the
        released code.
    Departures:
        The model evaluated is the one that training goes on from; the authors evaluate the mean of the last two, as the
        steps vary. Their code multiplies eps by the number of participants, and lets it fall over the rounds as the
        square of the local rate; here it stays.
    """

    rule: Aggregator
    eps: float

    def __post_init__(self) -> None:
        require(self.eps >= 0, "eps", "0 or more, such as 0.001", self.eps)

    @property
    def min_clients(self) -> int:
        """Fewest clients that the rule can combine."""
        return self.rule.min_clients

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Ask the rule and lengthen its step; see :meth:`Aggregator.__call__`."""
        result = self.rule(updates, gram, cohort, state)
        squares = gram.diagonal()
        if result.mixing is not None:  # C M C^T, of each block where every block has a C of its own
            grams = updates.gram(by_block=True) if result.mixing.dim() == 3 else gram
            squares = torch.einsum("...ki,...ij,...kj->...k", result.mixing, grams, result.mixing)
            squares = squares.reshape(-1, len(cohort)).sum(0)
        weights = cohort.weights
        mean_square = weights.sum() * (weights @ squares)  # the sum is not one for rules of FedNova's kind
        length = float(result.update.to(torch.float64).square().sum())
        if not length:
            return result
        factor = max(1.0, float(mean_square) / (2 * (length + self.eps)))
        coefficients, mixing = result.coefficients, result.mixing
        return replace(
            result,
            update=factor * result.update,
            coefficients=None if coefficients is None else factor * coefficients,
            mixing=None if mixing is None else factor * mixing,
        )
