"""FedSWA: a local rate that falls within each round, for stochastic weight averaging at the server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Start

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedSWA(Algorithm):
    """Take the optimizer's steps at a rate that falls in equal parts from ``lr`` to ``final_rate * lr`` in each round.

    Step s = 0 .. K - 1 is ``1 - (1 - final_rate) s / K`` times as long; with momentum it is the whole step that is
    shortened. The server's moving average ``w <- w + a (mean - w)`` is its step with the rate a,
    ``server_optimizer.lr=a``. With ``final_rate: 1`` it is FedAvg to the bit, at the same ``optimizer.lr``.

    Args:
        final_rate: The paper's rho, in [0, 1]; 0 in the authors' code.

    Reference:
        Liu et al.: "Improving Generalization in Federated Learning with Highly Heterogeneous Data via Momentum-Based
        Stochastic Controlled Weight Averaging", ICML 2025, and the released code (FedSWA).
    Departures:
        The release averages uniformly (``weights: uniform``). Momentum as for the other methods; the release has none,
        and clips gradients at norm 10. The rate is twice FedAvg's, as the authors advise (their code doubles it once
        more).
    """

    final_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.final_rate <= 1, "final_rate", "from 0 to 1 (no fall); 0 in the authors' code", self.final_rate
        )

    def prepare(self, client: ClientView) -> Start:
        """Start with the number of steps to take, and of those taken."""
        start = super().prepare(client)
        steps = {"steps": start.params.new_tensor(client.num_steps), "taken": start.params.new_zeros(())}
        return replace(start, state={**start.state, **steps})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient, and count the step."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        return gradient, loss, {**state, "taken": state["taken"] + 1}

    def after_step(self, before: Tensor, params: Tensor, state: ClientState) -> Tensor:
        """Shorten the step, which is counted already."""
        if self.final_rate == 1:
            return params
        rate = 1 - (1 - self.final_rate) * (state["taken"] - 1) / state["steps"]
        return before + rate * (params - before)
