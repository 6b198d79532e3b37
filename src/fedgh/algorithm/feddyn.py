"""FedDyn: a dynamic regularizer that lets the clients' stationary points agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, CohortResult, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedDyn(Algorithm):
    """Step along ``g + alpha (theta - w + H_k)``; afterwards ``H_k <- H_k + theta - w``.

    That is ``loss - <lambda_k, theta> + alpha/2 ||theta - w||^2`` with ``lambda_k = -alpha H_k``. The server keeps
    ``h = sum_k p_k H_k`` over *all* clients, from the raw updates of the participants, and adds it to the model after
    its own step: ``w <- w + aggregate + h``. ``weights`` say p_k in h and in the average alike, and so whose optimum is
    found: n_k / n is FedAvg's objective, ``uniform`` (1 / N) the authors'. No neutral setting: as alpha goes to 0 the
    pull vanishes and h does not.

    Args:
        alpha: Strength of the regularizer, > 0; 0.01 in the authors' CIFAR-10 script, 0.1 in most reimplementations.

    Reference:
        Acar et al.: "Federated Learning Based on Dynamic Regularization", ICLR 2021, algorithm 1; H_k instead of
        lambda_k as in the authors' code.
    Departures:
        The authors clip gradients at norm 10, use SGD without momentum, and scale alpha by n / (n_k N) per client.
        Running statistics have no h and are averaged.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, "alpha", "positive (0.01 in the authors' code; algorithm=fedavg for none)", self.alpha)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        """Begin with ``h = 0``, and remember p_k of everybody."""
        server = super().initialize(server, blocks, num_examples, seed)
        memory = {"h": torch.zeros_like(server.params), "shares": self.client_shares(num_examples)}
        return replace(server, memory={**server.memory, **memory})

    def prepare(self, client: ClientView) -> Start:
        """Start with H_k, zero at first."""
        start, own = super().prepare(client), client.state.get("h")
        return replace(start, state={**start.state, "h": torch.zeros_like(start.params) if own is None else own})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient of the regularized loss; the loss returned is the task's."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        return gradient + self.alpha * (params.detach() - global_params + state["h"]), loss, state

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep the new H_k: the sum of all updates of this client, so the server needs no second message."""
        report, h = super().report(client, trained), trained.state["h"] + trained.update
        if self._sends_h():
            trained.update.add_(h)
        return replace(report, state={**report.state, "h": h})

    def _sends_h(self) -> bool:
        """Whether clients add H_k to their updates themselves, so that the participants' counts and not everybody's."""
        return False

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Move h by ``p_k`` times the raw updates (p_k of all clients, not of the participants), and the model by h."""
        after = super().conclude(before, after, result)
        if self._sends_h():
            return after
        shares = before.memory["shares"][list(result.client_ids)]
        h = before.memory["h"] + result.updates.combine(shares)
        return replace(after, params=after.params + h, memory={**after.memory, "h": h})
