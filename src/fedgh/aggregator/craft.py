"""CRAFT: the point nearest to the last direction whose products with all unit updates are the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State, require, require_one_of, rescaled
from fedgh.aggregator.spectrum import unit_gram
from fedgh.core.groups import group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class CRAFT(Aggregator):
    """Give every client the inner product with its unit update that its weight says, moving as little as possible.

    Per layer, with unit updates ``D_k = g_k / ||g_k||`` and r the last direction of this layer, of length one:
    ``d = r + D^+ (p - D r)``, the nearest point to r with ``<D_k, d> = p_k``. In Gram space r is one more row:
    ``q = S^+ (p - b)`` with S the cosines and ``b_k = <D_k, r>``; then ``d = sum_k q_k g_k / ||g_k|| + r``. Zero
    updates are left out; of one update alone d is that update, whatever r; and with none d is zero, and r is forgotten.

    Attributes:
        rescale: See :class:`~fedgh.aggregator.base.GramRule`. The length of d is of the order of one whatever that of
            the updates, so the authors move by a server rate of 0.1.
        cutoff: Singular values of D below this share of the largest count as zero, which merges updates that nearly
            agree; null for the released code's, ``max(K, d) eps`` of float32, which grows with the layer's width d:
            0.4 % for a 3x3 convolution of 64 channels, 12 % for a million parameters.
        scope: What has a direction of its own: ``layer`` (tensors of one module), ``block`` (a parameter tensor), or
            the whole ``model``.

    Reference:
        Wang, Liu, Thuerey: "CRAFT: Conflict-Resolved Aggregation for Federated Training", arXiv 2605.21317, from the
        released code (tum-pbs/CRAFT, fed/craft.py).
    Departures:
        Only parameters have rows; the release has rows of running statistics, too, and joins a group or layer norm with
        the convolution before it. p is normalized over the clients whose update of the layer is not zero, as there. r
        is the direction before rescaling.
    """

    rescale: str
    cutoff: float | None
    scope: str

    stateful = True
    scale_preserving = False
    needs = "layers"

    def __post_init__(self) -> None:
        require_one_of("rescale", self.rescale, ("none", "fedavg_norm", "sum_to_one"))
        require_one_of("scope", self.scope, ("model", "layer", "block"))
        allowed = self.cutoff is None or 0 <= self.cutoff < 1
        require(allowed, "cutoff", "null (the released code's), or at least 0 and below 1", self.cutoff)

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Solve layer by layer, remember the direction; see :meth:`Aggregator.__call__`."""
        last = state.get("direction", torch.zeros(updates.blocks[-1].stop))
        group, sizes = group_of_block(updates.blocks, self.scope), [b.stop - b.start for b in updates.blocks]
        num_groups = int(group.max()) + 1
        widths = torch.zeros(num_groups, dtype=torch.int64).index_add_(0, group, torch.tensor(sizes))
        grams = updates.gram_with(last, by_block=True)
        grams = torch.zeros(num_groups, *grams.shape[1:], dtype=torch.float64).index_add_(0, group, grams)
        found = zip(grams, widths.tolist(), strict=True)
        solved = torch.stack([self.solve(products, cohort.weights, width) for products, width in found])

        def combined(coefficients: Tensor) -> Tensor:
            update = updates.combine(coefficients[group, :-1])
            factors = coefficients[group, -1].repeat_interleave(torch.tensor(sizes))
            return update + factors.to(update) * last.to(update)

        weights = torch.cat([cohort.weights, torch.zeros(1, dtype=torch.float64)])
        coefficients = rescaled(solved, grams, weights, self.rescale)
        state = {"direction": combined(solved).cpu()}
        of_clients = None if bool((coefficients[:, -1] != 0).any()) else coefficients[group, :-1]
        return Aggregate(combined(coefficients), of_clients, state=state)

    def solve(self, gram: Tensor, weights: Tensor, width: int) -> Tensor:
        """Return the coefficients of the updates and of the last direction, ``(clients + 1,)``.

        Args:
            gram: Of the updates and, as its last row, the last direction, ``(clients + 1, clients + 1)`` float64.
            weights: ``(clients,)``.
            width: Parameters of the layer, d.
        """
        cosines, inverse = unit_gram(gram)
        coefficients = torch.zeros_like(inverse)
        moved = (inverse[:-1] > 0).nonzero().flatten()
        if len(moved) == 1:
            coefficients[moved] = 1.0
        if len(moved) < 2:
            return coefficients
        targets = weights[moved] if bool((weights[moved] > 0).any()) else torch.ones(len(moved), dtype=torch.float64)
        targets = targets / targets.sum() - cosines[moved, -1]
        eps = torch.finfo(torch.float32).eps
        cutoff = max(len(moved), width) * eps if self.cutoff is None else self.cutoff
        inverted = torch.linalg.pinv(cosines[moved][:, moved], rtol=max(cutoff**2, 1e-15), hermitian=True)
        coefficients[moved] = inverted @ targets * inverse[moved]
        coefficients[-1] = inverse[-1]
        return coefficients
