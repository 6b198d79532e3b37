"""Norm clipping before any rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class Clipped(Aggregator):
    """Shorten updates that are too long, then hand them to another rule.

    ``g_k <- g_k min(1, limit / ||g_k||)``. In Gram space that is a positive scaling of rows, so no update is copied
    unless the rule inside reads coordinates. Tells nothing from lengths below the limit: a tiny update can still veto
    under rules that use directions (see ``min_norm_ratio`` of FedGH).

    Attributes:
        rule: What combines the clipped updates.
        max_norm: The limit, positive.
        unit: Of ``max_norm``: ``absolute``, the norm itself; ``median``, multiples of the round's median norm.

    Reference:
        Sun et al.: "Can You Really Backdoor Federated Learning?", 2019 (norm thresholding).
    Departures:
        Coefficients and C refer to the updates as they came, so that what clipping took away shows in the metrics.
    """

    rule: Aggregator
    max_norm: float
    unit: str

    scale_preserving = False

    def __post_init__(self) -> None:
        require(self.max_norm > 0, "max_norm", "positive", self.max_norm)
        require_one_of("unit", self.unit, ("absolute", "median"))

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Clip, then call the rule; see :meth:`Aggregator.__call__`."""
        norms = gram.diagonal().sqrt()
        limit = self.max_norm * (norms.quantile(0.5) if self.unit == "median" else 1.0)
        scale = torch.where(norms > limit, limit / norms, 1.0)
        clipped = ScaledUpdates(updates, scale)
        result = self.rule(clipped, scale[:, None] * gram * scale, cohort, state)
        coefficients, mixing = result.coefficients, result.mixing
        return replace(
            result,
            coefficients=None if coefficients is None else coefficients * scale,
            mixing=None if mixing is None else mixing * scale,
        )


class ScaledUpdates(UpdateMatrix):
    """An update matrix whose rows are multiplied by positive numbers, without a copy until ``rows`` is read.

    Args:
        updates: The rows as they came, ``(clients, params)``.
        scale: ``(clients,)`` float64.
    """

    def __init__(self, updates: UpdateMatrix, scale: Tensor) -> None:
        self.updates = updates
        self.scale = scale
        self.blocks = updates.blocks

    @property
    def rows(self) -> Tensor:  # type: ignore[override]
        """The scaled rows, ``(clients, params)``, copied at every reading."""
        rows = self.updates.rows
        return rows * self.scale.to(rows)[:, None]

    def __len__(self) -> int:
        return len(self.scale)

    def gram(self, by_block: bool = False) -> Tensor:
        """See :meth:`UpdateMatrix.gram`."""
        return self.scale[:, None] * self.updates.gram(by_block) * self.scale

    def exact_gram(self) -> Tensor:
        """See :meth:`UpdateMatrix.exact_gram`."""
        return self.scale[:, None] * self.updates.exact_gram() * self.scale

    def gram_with(self, row: Tensor, by_block: bool = False) -> Tensor:
        """See :meth:`UpdateMatrix.gram_with`."""
        scale = torch.cat([self.scale, torch.ones(1, dtype=torch.float64)])
        return scale[:, None] * self.updates.gram_with(row, by_block) * scale

    def combine(self, coefficients: Tensor) -> Tensor:
        """See :meth:`UpdateMatrix.combine`."""
        return self.updates.combine(coefficients * self.scale)
