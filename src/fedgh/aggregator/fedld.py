"""FedLD's server half: every client along the principal directions of all, at those directions' lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import RESOLUTION, Aggregate, Aggregator, State, require, require_one_of, rescaled
from fedgh.core.groups import group_grams, group_of_block
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix


@dataclass(frozen=True)
class FedLD(Aggregator):
    """Replace every client's component along a principal direction by that direction's share, and average.

    Per tensor, with ``M / K = E diag(s) E^T`` and v_j the principal direction of eigenvalue s_j, of the largest
    ``int(share K)``: client i's component along v_j becomes ``s_j / sum(s) * ||g_i||``, with its sign. In Gram space
    the plain average of that is ``sum_j (s_j / sum(s)) mean_i(sign(e_ij) ||g_i||) e_j / sqrt(K s_j)``. Shorter than the
    mean, see ``rescale``. Ignores how many examples clients have.

    Attributes:
        rescale: See :class:`~fedgh.aggregator.base.GramRule`.
        share: Of the K directions, how many are kept (at least one), in (0, 1]; 0.8 as released.
        scope: What has directions of its own: ``block`` (parameter tensor, as released), ``layer`` or the ``model``.

    Reference:
        Zeng et al.: "Tackling Data Heterogeneity in Federated Learning via Loss Decomposition" (FedLD), MICCAI 2024,
        principal gradients of the server, from the released code.
    Departures:
        The majority's sign, which the release applies first, changes nothing and is left out. Directions that float32
        cannot tell from rounding are skipped, and components below a millionth of an update count as zero. Where
        eigenvalues are equal the directions are not determined, and any basis serves. The client half, a penalty on
        predictions, is not here.
    """

    rescale: str
    share: float
    scope: str

    uses_weights = False
    needs = "layers"

    def __post_init__(self) -> None:
        require_one_of("rescale", self.rescale, ("none", "fedavg_norm", "sum_to_one"))
        require(0 < self.share <= 1, "share", "above 0, at most 1", self.share)
        require_one_of("scope", self.scope, ("model", "layer", "block"))

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:  # noqa: ARG002
        """Solve tensor by tensor; see :meth:`Aggregator.__call__`."""
        group = group_of_block(updates.blocks, self.scope)
        grams = group_grams(updates, group)
        coefficients = torch.stack([self.coefficients(part) for part in grams])
        coefficients = rescaled(coefficients, grams, cohort.weights, self.rescale)[group]
        return Aggregate(updates.combine(coefficients), coefficients)

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return the coefficients of a tensor, ``(clients,)``; zero if nobody moved it."""
        squares, vectors = torch.linalg.eigh(gram)  # K s, ascending
        kept = max(1, int(self.share * len(gram) + 1e-9))
        squares, vectors, total = squares.flip(0)[:kept], vectors.flip(1)[:, :kept], squares.clamp_min(0).sum()
        clear = squares > len(gram) * RESOLUTION * squares[0].clamp_min(0)
        squares, vectors = squares[clear], vectors[:, clear]
        norms = gram.diagonal().clamp_min(0).sqrt()
        components = vectors * squares.sqrt()  # <g_i, v_j>
        signs = components.sign() * (components.abs() > 1e-6 * norms[:, None])
        lengths = (signs * norms[:, None]).mean(0)
        combined: Tensor = vectors @ (squares / torch.where(total > 0, total, 1.0) * lengths / squares.sqrt())
        return combined
