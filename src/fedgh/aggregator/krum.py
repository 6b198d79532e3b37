"""Krum and Multi-Krum: the updates with the closest neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import GramRule, require
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import Block


@dataclass(frozen=True)
class Krum(GramRule):
    """Average the updates whose ``K - f - 2`` nearest neighbors are nearest.

    Client k's score is the sum of its squared distances to them, ``||g_i - g_j||^2 = M_ii + M_jj - 2 M_ij``; the
    ``num_selected`` clients with the smallest scores are averaged. One is Krum, more is Multi-Krum. Ignores how many
    examples clients have.

    Attributes:
        num_byzantine: f, how many clients of a round may be corrupted, >= 0; a round needs at least 2 f + 3 clients.
        num_selected: m, how many updates are averaged, at least 1 and at most K - f.

    Reference:
        Blanchard et al.: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.
    Departures:
        Ties go to the smaller client id.
    """

    num_byzantine: int
    num_selected: int

    uses_weights = False
    exact = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_byzantine >= 0, "num_byzantine", "0 or positive", self.num_byzantine)
        require(self.num_selected >= 1, "num_selected", "at least 1", self.num_selected)

    @property
    def min_clients(self) -> int:
        """2 f + 3, and enough to select from."""
        return max(2 * self.num_byzantine + 3, self.num_selected + self.num_byzantine)

    def coefficients(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return 1 / m for the clients selected and 0 for the others, ``(clients,)``.

        Raises:
            ConfigurationError: If the round has too few clients.
        """
        self.check(len(cohort))
        norms = gram.diagonal()
        distances = (norms[:, None] + norms - 2 * gram).clamp_min(0)  # squared
        distances.fill_diagonal_(torch.inf)
        neighbors = distances.sort(dim=1).values[:, : len(cohort) - self.num_byzantine - 2]
        selected = neighbors.sum(1).argsort(stable=True)[: self.num_selected]
        coefficients = torch.zeros_like(norms)
        coefficients[selected] = 1 / self.num_selected
        return coefficients

    def check(self, num_clients: int, blocks: Sequence[Block] = ()) -> None:  # noqa: ARG002
        """Refuse too few clients; see :meth:`fedgh.aggregator.base.Aggregator.check`."""
        f, m = self.num_byzantine, self.num_selected
        if num_clients < 2 * f + 3:
            raise ConfigurationError(
                f"aggregator.num_byzantine={f} needs at least {2 * f + 3} clients a round, got {num_clients} (clients "
                "whose update is not finite do not count); let more take part (partition.num_clients, sampler), "
                + ("lower aggregator.num_byzantine, " if f else "")
                + "or type aggregator=mean or median, which take any number"
            )
        if m > num_clients - f:
            raise ConfigurationError(
                f"aggregator.num_selected must be at most {num_clients - f} ({num_clients} clients a round, {f} of "
                f"which may be corrupted), got {m}"
            )
