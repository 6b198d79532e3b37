"""FedProx: a proximal term that holds clients near the global model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState


@dataclass(frozen=True, kw_only=True)
class FedProx(TwoLosses):
    """Minimize ``loss + mu/2 ||theta - w||^2`` over all trainable parameters theta.

    Args:
        mu: Strength of the proximal term, >= 0. The FedGH paper states 0.1. The code base it built on used the live
            parameters as reference, so that the term and its gradient were zero: ``mu: 0`` is that reading.

    Reference:
        Li et al.: "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation (2).
    Departures:
        The stragglers of the paper (partial work) are not simulated.
    """

    mu: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "0 or more; 0.1 in the paper, 0 is FedAvg", self.mu)

    def terms(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,
        state: ClientState,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the proximal term."""
        return self._pulled(batch, forward, params, global_params, self.mu)
