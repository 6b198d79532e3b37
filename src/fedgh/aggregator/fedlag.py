"""FedLAG: layers that conflict most are not shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of
from fedgh.core.errors import ConfigurationError
from fedgh.core.groups import conflicting_pairs, group_grams, group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix


@dataclass(frozen=True)
class FedLAG(Aggregator):
    """Count conflicts per layer while warming up, then stop aggregating the layers that have most.

    For ``warmup_rounds`` the update is the mean, and layer l's score grows by the number of pairs i < j with
    ``cos(g_i^l, g_j^l) < threshold``. From then on the ``num_private`` layers with the largest scores are private:
    their part of the update is zero, the others' is the mean.

    What this is, and what it is not: an aggregator alone cannot give clients personal layers. A private layer stays in
    the global model as the warm-up left it; every client trains it for the length of a round and then loses it. That is
    FedLAG's global model, without the personal models that the paper evaluates: ``algorithm=fedlag`` is the whole.

    Attributes:
        num_private: Layers kept private (the paper's k), at least 1; layers that never conflicted stay shared.
        warmup_rounds: Rounds with everything shared, at least 1; the paper takes half of all rounds, at most 30.
        threshold: Cosine below which a pair counts as conflicting (the paper's xi), in [-1, 1].
        scope: What a layer is: ``layer``, the tensors of one module together, or ``block``, every parameter tensor.

    Reference:
        Nguyen et al.: "Towards Layer-Wise Personalized Federated Learning: Adaptive Layer Disentanglement via
        Conflicting Gradients" (FedLAG), arXiv 2410.02845, from the formula.
    Departures:
        Counts on the clients' updates (the released code: on the last batch's gradient, per tensor). No personal
        layers, see above. Of layers with equal scores the earlier one is private.
    """

    num_private: int
    warmup_rounds: int
    threshold: float
    scope: str

    identity_without_conflict = True
    stateful = True
    needs = "layers"

    def __post_init__(self) -> None:
        require(self.num_private >= 1, "num_private", "at least 1", self.num_private)
        require(self.warmup_rounds >= 1, "warmup_rounds", "at least 1", self.warmup_rounds)
        require(-1 <= self.threshold <= 1, "threshold", "in [-1, 1]", self.threshold)
        require_one_of("scope", self.scope, ("layer", "block"))

    def check(self, num_clients: int, blocks: Sequence[Block]) -> None:  # noqa: ARG002
        """Refuse to leave no layer to share; see :meth:`fedgh.aggregator.base.Aggregator.check`."""
        layers = int(group_of_block(blocks, self.scope).max()) + 1
        if self.num_private >= layers:
            raise ConfigurationError(
                f"aggregator.num_private must leave a layer to share: the model has {layers}, got {self.num_private}"
            )

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Count or mask, then take the mean of what is shared; see :meth:`Aggregator.__call__`."""
        self.check(len(cohort), updates.blocks)
        group = group_of_block(updates.blocks, self.scope)
        scores = state.get("scores", torch.zeros(int(group.max()) + 1, dtype=torch.float64))
        rounds = state.get("rounds", torch.zeros((), dtype=torch.int64))
        if rounds < self.warmup_rounds:
            scores, shared = (
                scores + conflicting_pairs(group_grams(updates, group), self.threshold),
                torch.ones(len(scores), dtype=torch.bool),
            )
        else:
            shared = ~self.private(scores)
        coefficients = shared[group][:, None] * cohort.weights
        state = {"scores": scores, "rounds": rounds + 1}
        return Aggregate(updates.combine(coefficients), coefficients, state=state)

    def private(self, scores: Tensor) -> Tensor:
        """Return which layers are private, ``(layers,)`` bool."""
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[scores.argsort(descending=True, stable=True)[: self.num_private]] = True
        return chosen & (scores > 0)
