"""q-FedAvg: clients with a larger loss count more, and the step shrinks by as much as the losses curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.algorithm.momentum import accumulation, plain_momentum
from fedgh.core.types import CohortResult, Report, Start, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

FLOOR = 1e-10
"""Added to a loss before every power, in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class QFedAvg(Algorithm):
    """Minimize ``sum_k p_k F_k^(q+1) / (q+1)``: count client k by ``p_k F_k^q / sum_j p_j (F_j^q + q F_j^(q-1) s_j)``.

    F_k is the client's mean loss on its training examples at the received model, in evaluation mode, and
    ``s_k = ||D_k||^2 / lr`` (see ``path``), D_k being its update. In the paper's words, with ``L = 1 / lr``:
    ``Delta_k = -L F_k^q D_k``, ``h_k = q F_k^(q-1) ||L D_k||^2 + L F_k^q``, and the model moves by
    ``-sum Delta_k / sum h_k``. The weights sum to less than one and are not normalized: the more the losses curve, the
    shorter the step. With ``q: 0`` it is FedAvg to the bit. A clock discounts the weights by staleness, and F_k is that
    at the version received.

    Args:
        q: How much the worst clients matter, >= 0; the paper tries 0.001 to 10.
        path: What an update is taken for in ``s_k``: ``step``, a gradient times ``lr`` (the authors), or ``sum``, a
            gradient times ``lr a`` with a the number of local steps, or with momentum
            :func:`~fedgh.algorithm.momentum.accumulation`. Only with ``sum`` does s_k not grow with steps and momentum,
            and the model still move where there are many of them: it stands for ``L = 1 / (lr a)``.

    Reference:
        Li, Sanjabi, Beirami, Smith: "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2, and the
        released code.
    Departures:
        ``path=sum``, the yaml's choice, is ours: with L = 1 / lr, momentum and five epochs, h_k is a hundred times its
        first term, and the model hardly moves. The authors draw clients in proportion to n_k and have no p_k, which is
        ``weights=uniform``.
    """

    q: float
    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.q >= 0, "q", "0 (FedAvg) or more; the paper tries 0.001 to 10", self.q)
        require(self.path in ("step", "sum"), "path", "step (the authors' code) or sum", self.path)
        if self.path == "sum":
            plain_momentum(self, "qfedavg")

    def prepare(self, client: ClientView) -> Start:
        """Take the loss before training."""
        received = client.received
        loss = received.params.new_tensor(client.loss(received.params))
        return Start(received.params, received.buffers, {"loss": loss})

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Send F_k and ``s_k``."""
        length = client.lr
        if self.path == "sum":
            length = length * accumulation(trained.local_steps, self.optimizer_settings()["momentum"])
        loss = trained.state["loss"]
        return Report(client.state, {"loss": loss, "s": trained.update.to(loss).square().sum() / length})

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return ``p_k F_k^q`` over the sum of ``p_j h_j``, ``(clients,)`` float64."""
        if self.q == 0:
            return weights
        losses, s = (result.messages[name].cpu().to(weights) for name in ("loss", "s"))
        losses = losses + FLOOR
        return weights * losses**self.q / (weights * (losses**self.q + self.q * losses ** (self.q - 1) * s)).sum()
