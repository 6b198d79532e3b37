"""FedACG: clients start where the server's momentum is about to take the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, CohortResult, ServerState
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class FedACG(TwoLosses):
    """Start at the look-ahead ``v = w + lam m`` and minimize ``loss + beta/2 ||theta - v||^2``; updates are theta - v.

    The server then moves ``m <- lam m + step``, ``w <- w + m``, ``step`` being what aggregator and server optimizer
    make of the updates. The model evaluated is w. Momentum is of parameters: running statistics are averaged. Clients
    keep nothing. With ``lam: 0`` and ``beta: 0`` it is FedAvg to the bit.

    Args:
        lam: Momentum of the server, in [0, 1); 0.85 in the authors' code.
        beta: Strength of the pull towards v, >= 0; 0.002, as the authors' code has 0.001 without the half (the paper:
            0.01).

    Reference:
        Kim, Kim, Han: "Communication-Efficient Federated Learning with Accelerated Client Gradient", CVPR 2024,
        algorithm 1, and the released code.
    Departures:
        The authors average uniformly (``weights: uniform``). Their momentum runs over running statistics, too, where
        there are any; no gradient clipping at norm 10, no decay of the rate within a round.
    """

    lam: float
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.lam < 1, "lam", "at least 0 and below 1; 0.85 in the authors' code", self.lam)
        require(self.beta >= 0, "beta", "0 or more; 0.002 in the authors' code", self.beta)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with ``m = 0``."""
        return replace(server, memory={"m": torch.zeros_like(server.params)})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Send v instead of w: clients start there, and updates are relative to it."""
        return Broadcast(params=server.params + self.lam * server.memory["m"])

    def terms(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,
        state: ClientState,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the pull; ``global_params`` is v."""
        return self._pulled(batch, forward, params, global_params, self.beta)

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:  # noqa: ARG002
        """Move m by the server's step, and w by the rest of m."""
        carried = self.lam * before.memory["m"]
        return replace(after, params=after.params + carried, memory={"m": carried + after.params - before.params})
