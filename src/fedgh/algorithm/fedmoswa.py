"""FedMoSWA: FedSWA's falling rate with SCAFFOLD's correction, whose memory is a momentum of the participants'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import require
from fedgh.algorithm.fedswa import FedSWA
from fedgh.algorithm.scaffold import Scaffold
from fedgh.core.types import CohortResult, ServerState, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedMoSWA(FedSWA, Scaffold):
    """Step along ``g - c_k + c`` at FedSWA's falling rate; the server moves c by gamma times the mean change of c_k.

    The mean is over the participants, by ``weights`` (``uniform`` is the authors'). c_k is updated as in SCAFFOLD,
    divided by the sum of the rates taken. SCAFFOLD's own factor in place of gamma would be the participants' share of
    all clients: a larger gamma lets c follow those who were there.

    Args:
        final_rate: See :class:`~fedgh.algorithm.fedswa.FedSWA`.
        gamma: Share of the changes that goes into c, in (0, 1]; 0.4 in the authors' code.

    Reference:
        Liu et al.: "Improving Generalization in Federated Learning with Highly Heterogeneous Data via Momentum-Based
        Stochastic Controlled Weight Averaging", ICML 2025, and the released code.
    Departures:
        The paper's rule: in the release the method's name leads to SCAFFOLD at a constant rate in every round. The sum
        of the rates is exact (there: steps times the mean of first and last). No gradient clipping; momentum allowed.
    """

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1; 0.4 in the authors' code", self.gamma)

    def _path(self, client: ClientView, trained: Trained) -> float:
        """Return by how much a constant direction is multiplied in the update: each step's rate and momentum count."""
        step = torch.arange(trained.local_steps, dtype=torch.float64)
        rate = 1 - (1 - self.final_rate) * step / trained.local_steps
        momentum = self.optimizer_settings()["momentum"]
        return client.lr * float((rate * (1 - momentum ** (step + 1)) / (1 - momentum)).sum())

    def _of_c(self, before: ServerState, result: CohortResult) -> Tensor:  # noqa: ARG002
        """Return gamma times the participants' shares, ``(clients,)``."""
        return self.gamma * self.client_shares(result.num_examples)
