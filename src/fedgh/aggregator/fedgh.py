"""FedGH: gradient harmonization, in Gram space.

Algorithm 1 of the paper, for every client k with frozen updates g_j::

    h <- g_k
    for j in a random order of the other clients:
        s <- <h, g_j>                              the running vector against the frozen copy
        if s < 0:  h <- h - s / ||g_j||^2 * g_j    project onto the normal plane of g_j
    w <- w + sum_k p_k h_k

Every running h stays in the span of the updates, h = c @ G, and a step changes one entry of c. So the whole chain of
projections needs only the Gram matrix, and the aggregate is one weighted sum of the updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, MixingRule, State, require, require_one_of, rescaled
from fedgh.aggregator.projection import harmonize, orders_by, project_at_once, random_orders
from fedgh.core.groups import group_grams, group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class FedGH(MixingRule):
    """Remove from every client's update its conflict with the others, then take the weighted sum.

    The paper's rule has no hyperparameter, needs no client change and no extra traffic. With no negative cosine it is
    exactly the mean; with two clients it is GH. All attributes are free generalizations of ours, off by default.

    Attributes:
        rescale: See :class:`GramRule`; the paper's is ``none``. The coefficients sum to one or more.
        order: In which order a client is projected against the others: ``random`` (the paper), ``id``, ``cosine`` (from
            the most opposed to the most aligned), or ``loss`` (ascending local loss, as in FedFV). ``simultaneous``:
            all at once, every product taken of the updates as they came, which removes what several opponents share
            once for each of them (what FedDRM's code calls ConFREE).
        sweeps: How often a client goes through its order. One (the paper) leaves some conflict among three or more
            clients; many bring every update into the dual cone, where it opposes nobody.
        scope: What is harmonized by itself: the whole ``model`` (the paper), every ``layer`` (tensors of one module),
            or every ``block`` (parameter tensor). Orders are shared.
        min_norm_ratio: Clients whose norm is below this share of the median norm do not act as projectors; 0 (the
            paper) lets all of them. A projection uses a direction only, so one tiny opposing update can otherwise veto
            what all others agree on.

    Reference:
        Zhang, Sun, Chen: "Tackling the Non-IID Issue in Heterogeneous Federated Learning by Gradient Harmonization",
        arXiv 2309.06692, Algorithm 1.
    Departures:
        Computed in Gram space, equal to Algorithm 1 up to rounding. Where the text and Algorithm 1 differ, Algorithm 1
        is followed: equation (1) of the first version prints ``||g||`` where the projection has ``||g||^2``, and the
        text decides conflicts once, on the original vectors, where Algorithm 1 asks the running one.
    """

    order: str
    sweeps: int
    scope: str
    min_norm_ratio: float

    identity_without_conflict = True
    random = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("order", self.order, ("random", "id", "cosine", "loss", "simultaneous"))
        require_one_of("scope", self.scope, ("model", "layer", "block"))
        require(self.sweeps >= 1, "sweeps", "at least 1", self.sweeps)
        at_once = self.order == "simultaneous"
        require(not at_once or self.sweeps == 1, "sweeps", "1 with order=simultaneous", self.sweeps)
        require(self.min_norm_ratio >= 0, "min_norm_ratio", "0 (off) or positive", self.min_norm_ratio)

    def mix(self, gram: Tensor, cohort: Cohort) -> Tensor:
        """Return C, ``(clients, clients)``; row k holds client k's harmonized update, C >= I entrywise."""
        return self._mix(gram, self._orders(gram, cohort))

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Harmonize and combine, group by group if asked to; see :meth:`Aggregator.__call__`."""
        if self.scope == "model":
            return super().__call__(updates, gram, cohort, state)
        group = group_of_block(updates.blocks, self.scope)
        grams, orders = group_grams(updates, group), self._orders(gram, cohort)
        mixing = torch.stack([self._mix(part, orders) for part in grams])
        coefficients = rescaled(cohort.weights @ mixing, grams, cohort.weights, self.rescale)[group]
        return Aggregate(updates.combine(coefficients), coefficients, mixing[group])

    def _mix(self, gram: Tensor, orders: Tensor | None) -> Tensor:
        projectors = self._projectors(gram)
        return project_at_once(gram, projectors) if orders is None else harmonize(gram, orders, projectors)

    def _orders(self, gram: Tensor, cohort: Cohort) -> Tensor | None:
        if self.order == "simultaneous":
            return None
        if self.order == "random":
            orders = random_orders(cohort)
        elif self.order == "cosine":
            norms = gram.diagonal().sqrt()
            orders = orders_by(gram / torch.where(norms > 0, norms, 1.0))
        else:
            by = torch.tensor(cohort.client_ids) if self.order == "id" else cohort.losses
            orders = orders_by(by.expand(len(cohort), -1))
        return orders.repeat(1, self.sweeps)

    def _projectors(self, gram: Tensor) -> Tensor | None:
        if self.min_norm_ratio == 0:
            return None
        norms = gram.diagonal().sqrt()
        return norms >= self.min_norm_ratio * norms.quantile(0.5)
