"""FedCM: every local step goes mostly where all clients went in the round before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, accumulation, plain_momentum, require
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, CohortResult, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedCM(Algorithm):
    """Step along ``alpha g + (1 - alpha) d``, d the mean descent direction of the last round; d is sent with the model.

    ``d = -step / sum_k p_k a_k lr_k``, with the lr of the round that made the step and a_k the local steps, or with
    momentum the sum of their accumulated coefficients, see :func:`~fedgh.algorithm.base.accumulation`. It is zero
    before the first round, whose steps are therefore ``alpha g``: a slow start, and the method's own. Clients keep
    nothing. With ``alpha: 1`` it is FedAvg to the bit.

    Weight decay is added by the optimizer after the mix, as in the code read, so that d holds it, too: where training
    comes to rest it weighs ``weight_decay / alpha``.

    Args:
        alpha: Share of the new gradient, in (0, 1]; 0.1.
        direction: What d is made of: ``applied``, how the global model has moved (harmonized where the aggregator does
            that, and with the server's rate), or ``raw``, the mean of the updates as the clients sent them.

    Reference:
        Xu, Wang, Wang, Yao: "FedCM: Federated Learning with Client-level Momentum", arXiv 2106.10874, algorithm 1.
    Departures:
        The code read averages uniformly (``weights: uniform``), takes plain SGD and clips the mix at norm 10. Where
        clients take unequal numbers of steps d is divided by their mean; that code takes the first client's. A client
        sends the length of its path, one number.
    """

    alpha: float
    direction: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.alpha <= 1, "alpha", "above 0 and at most 1 (FedAvg); 0.1 in the paper", self.alpha)
        require(self.direction in ("applied", "raw"), "direction", "applied or raw", self.direction)
        plain_momentum(self, "fedcm")

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with ``d = 0``."""
        return replace(server, memory={"d": torch.zeros_like(server.params)})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Send d."""
        return Broadcast({"d": server.memory["d"]})

    def prepare(self, client: ClientView) -> Start:
        """Start with d at hand."""
        return Start(client.received.params, client.received.buffers, {"d": client.message["d"]})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the mix of gradient and d."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        return self.alpha * gradient + (1 - self.alpha) * state["d"], loss, state

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Send the length of the path that a constant direction would have taken."""
        length = client.lr * accumulation(trained.local_steps, self.optimizer_settings()["momentum"])
        return Report(message={"length": trained.params.new_tensor(length)})

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Remember d of this round."""
        shares = self.client_shares(result.num_examples)
        step = after.params - before.params if self.direction == "applied" else result.updates.combine(shares)
        length = float(shares @ result.messages["length"].to(shares))
        return replace(after, memory={"d": -step / length})
