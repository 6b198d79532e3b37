"""Layer-wise cosine aggregation: robust choices made of unit updates, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.aggregator.spectrum import unit_gram
from fedgh.core.errors import ConfigurationError
from fedgh.core.groups import group_grams, group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class LayerwiseCosine(Aggregator):
    """For every tensor, average the raw updates of the clients whose directions are the most central.

    With ``D_ij = 1 - cos(g_i, g_j)``, client i's score is the sum of the ``K - f - 2`` smallest D_ij (``krum``) or of
    all (``medoid``, the geometric median among the clients); the ``num_selected`` lowest are averaged, and the result
    is shortened, never lengthened, to the median norm of the tensor's updates. Different tensors may take different
    clients. Updates of length zero have no direction: they are not chosen, and K counts the others. Ignores how many
    examples clients have.

    Attributes:
        operator: ``krum`` or ``medoid``.
        num_byzantine: f of Krum, >= 0; a round needs at least f + 3 clients.
        num_selected: How many are averaged, at least 1; more is Multi-Krum.
        shorten: Whether the result is shortened; a flag of the release, off there.
        scope: What is chosen by itself: ``block`` (parameter tensor, as released) or ``layer``.

    Reference:
        García-Márquez et al.: "Improving (Multi-)Krum, Bulyan and the geometric median by Layerwise Cosine
        Aggregation", arXiv 2503.21244, from the released code (ari-dasci/S-layerwise_cosine_aggregation).
    Departures:
        The median norm is the lower one of an even number, as PyTorch's and the release's. A tensor that fewer than
        ``f + 3`` clients moved takes their nearest neighbour alone. Ties go to the smaller client id. No Bulyan, whose
        trimmed mean has no Gram form.
    """

    operator: str
    num_byzantine: int
    num_selected: int
    shorten: bool
    scope: str

    uses_weights = False
    needs = "layers"

    def __post_init__(self) -> None:
        require_one_of("operator", self.operator, ("krum", "medoid"))
        require(self.num_byzantine >= 0, "num_byzantine", "0 or positive", self.num_byzantine)
        require(self.num_selected >= 1, "num_selected", "at least 1", self.num_selected)
        require_one_of("scope", self.scope, ("layer", "block"))

    @property
    def min_clients(self) -> int:
        """``f + 3`` of Krum."""
        return self.num_byzantine + 3 if self.operator == "krum" else 1

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Choose tensor by tensor; see :meth:`Aggregator.__call__`.

        Raises:
            ConfigurationError: If the round has too few clients.
        """
        if len(cohort) < self.min_clients:
            raise ConfigurationError(
                f"aggregator.num_byzantine={self.num_byzantine} needs at least {self.min_clients} clients a round, got "
                f"{len(cohort)} (clients whose update is not finite do not count); let more take part, or type "
                "aggregator.operator=medoid, which takes any number"
            )
        group = group_of_block(updates.blocks, self.scope)
        coefficients = torch.stack([self.choose(part) for part in group_grams(updates, group)])[group]
        return Aggregate(updates.combine(coefficients), coefficients)

    def choose(self, gram: Tensor) -> Tensor:
        """Return the coefficients of a tensor, ``(clients,)``; zero if nobody moved it."""
        cosines, inverse = unit_gram(gram)
        coefficients = torch.zeros_like(inverse)
        moved = (inverse > 0).nonzero().flatten()
        if len(moved) == 0:
            return coefficients
        distances = 1 - cosines[moved][:, moved]
        distances.fill_diagonal_(torch.inf)
        neighbors = len(moved) - (self.num_byzantine + 2 if self.operator == "krum" else 1)
        scores = distances.sort(dim=1).values[:, : max(neighbors, min(1, len(moved) - 1))].sum(1)
        scores = scores.round(decimals=6)  # cosines of float32: parallel updates tie
        chosen = moved[scores.argsort(stable=True)[: self.num_selected]]
        coefficients[chosen] = 1 / len(chosen)
        if self.shorten:
            length = (coefficients @ gram @ coefficients).clamp_min(0).sqrt()
            limit = gram.diagonal().clamp_min(0).sqrt().median()
            coefficients *= torch.where(length > limit, limit / length, 1.0)
        return coefficients
