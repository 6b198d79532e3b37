"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, accumulation, plain_momentum
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, CohortResult, Report, ServerState, Start, Trained
from fedgh.core.updates import Block, UpdateMatrix

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class Scaffold(Algorithm):
    """Step along ``g - c_k + c``; afterwards ``c_k <- c_k - c + (w - theta) / (a lr)`` (option II).

    ``a`` is the number of local steps, or with momentum the sum of their accumulated coefficients, see
    :func:`~fedgh.algorithm.base.accumulation`. The server keeps ``c = sum_k p_k c_k`` over *all* clients: a round adds
    ``p_k`` times the change of every participant's c_k, which is sent beside the update. Both begin at zero, so the
    first round is FedAvg's to the bit. The update may be harmonized; the changes of c_k never are. Weight decay becomes
    a part of c_k, as the optimizer adds it. ``weights`` say p_k in c and in the average alike, and so whose optimum is
    found: n_k / n is FedAvg's objective, ``uniform`` (1 / N) the paper's.

    Reference:
        Karimireddy et al.: "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1.
    Departures:
        Momentum is allowed, with the coefficient above (plain tau would make c_k several times too large). Running
        statistics have no control variate and are averaged.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_momentum(self, type(self).__name__.lower())

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        """Begin with ``c = 0``, and remember p_k of everybody."""
        server = super().initialize(server, blocks, num_examples, seed)
        memory = {"c": torch.zeros_like(server.params), "shares": self.client_shares(num_examples)}
        return replace(server, memory={**server.memory, **memory})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Send c."""
        return Broadcast({"c": server.memory["c"]})

    def prepare(self, client: ClientView) -> Start:
        """Start with the correction of this round, ``c - c_k``."""
        start, c, own = super().prepare(client), client.message["c"], client.state.get("c")
        others = {name: tensor for name, tensor in start.state.items() if name != "c"}  # steps need the difference only
        return replace(start, state={**others, "correction": c if own is None else c - own})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the corrected gradient."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        return gradient + state["correction"], loss, state

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep the new c_k and send by how much it has changed."""
        length = self._path(client, trained)
        c = -trained.state["correction"] - (trained.params - client.received.params) / length
        own = client.state.get("c")
        return Report({"c": c}, {"change": c if own is None else c - own})

    def _path(self, client: ClientView, trained: Trained) -> float:
        """Return by how much a constant direction is multiplied in the update."""
        length: float = client.lr * accumulation(trained.local_steps, self.optimizer_settings()["momentum"])
        return length

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Move c by the weighted changes; who was absent has not changed."""
        change = UpdateMatrix(result.messages["change"], result.updates.blocks).combine(self._of_c(before, result))
        after = super().conclude(before, after, result)
        return replace(after, memory={**after.memory, "c": before.memory["c"] + change})

    def _of_c(self, before: ServerState, result: CohortResult) -> Tensor:
        """Return how much of each participant's change goes into c, ``(clients,)``: p_k of all clients, not of them."""
        return before.memory["shares"][list(result.client_ids)]
