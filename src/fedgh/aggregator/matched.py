"""The weighted mean, stretched as far as another rule would step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from fedgh.aggregator.base import RESOLUTION, Aggregate, Aggregator, State, require_one_of
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix


@dataclass(frozen=True)
class Matched(Aggregator):
    """Go in the direction of the mean, as far as another rule would go in the same round: a mean of matched step.

    A control, not a method: FedAvg under this rule has FedGH's longer step without the harmonization, so that comparing
    the two leaves the direction alone. The counterparts bring FedGH to the mean's step: ``aggregator=fedgh`` with
    ``aggregator.rescale=sum_to_one`` (gain) or ``fedavg_norm`` (norm). Reports call the gain of a step "coefficient
    sum", since gains in their tables are of accuracy.

    Attributes:
        rule: Whose step; one that gives coefficients.
        by: What is made equal: ``gain``, the sum of the coefficients, one for the mean and one or more for FedGH, a
            server rate; or ``norm``, the length of the update. The gain also counts what falls to very short updates,
            which hardly moves the model: where clients differ much in length, the norm is the fairer match.

    Reference:
        None: a control of ours.
    Departures:
        None.
    """

    rule: Aggregator
    by: str

    identity_without_conflict = True
    random = True

    def __post_init__(self) -> None:
        require_one_of("by", self.by, ("gain", "norm"))

    def check(self, num_clients: int, blocks: Sequence[Block]) -> None:
        """Refuse a rule without coefficients, and what it refuses itself; see :meth:`Aggregator.check`."""
        if getattr(self.rule, "rule", self.rule).needs == "coordinates":
            self._refuse()
        super().check(num_clients, blocks)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Ask the rule and keep the size of its step; see :meth:`Aggregator.__call__`.

        Raises:
            ConfigurationError: If the rule has no coefficients.
        """
        result = self.rule(updates, gram, cohort, state)
        if result.coefficients is None:
            self._refuse()
        weights = cohort.weights
        if self.by == "gain":
            factor = result.coefficients.sum(-1, keepdim=True) / weights.sum()
        else:
            factor = self._length_ratio(result.update, gram, weights)[None]
        coefficients = factor * weights
        mixing = factor[..., None] * torch.eye(len(cohort), dtype=torch.float64)
        return replace(result, update=updates.combine(coefficients), coefficients=coefficients, mixing=mixing)

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"aggregator.rule {type(self.rule).__name__} works coordinate by coordinate and has no gain to match; "
            "choose one with coefficients, such as aggregator@aggregator.rule=fedgh"
        )

    @staticmethod
    def _length_ratio(update: Tensor, gram: Tensor, weights: Tensor) -> Tensor:
        """Return how many times as long as the mean an update is; 1 where the mean is lost in rounding."""
        squared = weights @ gram @ weights
        if squared <= len(weights) * RESOLUTION * (weights @ gram.diagonal().sqrt()).square():
            return torch.ones_like(squared)
        ratio: Tensor = update.to(squared).norm() / squared.sqrt()
        return ratio
