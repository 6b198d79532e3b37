"""FA-LD: federated averaging of Langevin dynamics, which samples models instead of looking for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.algorithm.momentum import plain_momentum
from fedgh.core.forward import Forward
from fedgh.core.seeding import normal_numbers, torch_seed
from fedgh.core.types import Broadcast, ClientState, ServerState, Start
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FALD(Algorithm):
    """Step along ``-lr grad f + sqrt(2 lr tau) (rho xi + sqrt((1 - rho^2) / p_k) xi_k)``, with Gaussian noise.

    xi is the same for all clients of a step, xi_k the client's own; the mean over all clients of p_k has the noise of
    Langevin dynamics, whatever rho. f is the mean loss per example, so models are drawn from ``exp(-F / tau)``, F being
    the federation's mean loss: tau = 1 / n is the posterior of n training examples. The noise depends on seed, round,
    client and step alone. It takes local SGD without momentum. An aggregator that bends updates changes the law that is
    drawn from, and so does partial participation. With ``temperature: 0`` it is FedAvg to the bit.

    Args:
        temperature: tau, >= 0.
        rho: Share of the noise that clients have in common, in [0, 1]; 0 is least, 1 converges fastest.

    Reference:
        Deng, Zhang, Ma, Song, Lin: "On Convergence of Federated Averaging Langevin Dynamics", UAI 2024 (arXiv
        2112.05120), algorithm 2, equation (5).
    Departures:
        f is a mean, not a sum, which is a rescaling of lr and tau. The evaluated model is the last one: predictions are
        not averaged over models.
    """

    temperature: float
    rho: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature >= 0, "temperature", "0 (FedAvg) or more; try 1e-6", self.temperature)
        require(0 <= self.rho <= 1, "rho", "from 0 (noise of one's own) to 1 (common noise)", self.rho)
        if self.temperature > 0:
            momentum = plain_momentum(self, "fa_ld")
            require(
                momentum == 0, "optimizer.momentum", "0, or the noise of a step is felt in all later ones", momentum
            )

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Remember the seed and everybody's share."""
        return replace(server, memory={"seed": torch.tensor(seed), "shares": self.client_shares(num_examples)})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Send the seeds of the round's noise, and how large a client's own is."""
        seed, shares, t = int(server.memory["seed"]), server.memory["shares"], server.round_index
        scales = ((1 - self.rho**2) / shares).sqrt()
        own = {k: {"own": _seed(seed, "fa_ld", t, k), "scale": scales[k]} for k in client_ids}
        return Broadcast({"common": _seed(seed, "fa_ld_common", t)}, own)

    def prepare(self, client: ClientView) -> Start:
        """Start with the seeds, at step 0; the optimizer multiplies the noise by the rate."""
        received, message = client.received, client.message
        size = math.sqrt(2 * self.temperature / client.lr)
        sizes = received.params.new_tensor([size * self.rho, size * float(message["scale"])])
        state = {"common": message["common"], "own": message["own"], "sizes": sizes}
        return Start(received.params, received.buffers, {**state, "step": torch.zeros_like(message["own"])})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient less the noise, over the rate."""
        gradient, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        if self.temperature == 0:
            return gradient, loss, state
        count, (common, own) = len(gradient), state["sizes"].unbind()
        noise = common * normal_numbers(state["common"], state["step"], count).to(gradient)
        noise = noise + own * normal_numbers(state["own"], state["step"], count).to(gradient)
        return gradient - noise, loss, {**state, "step": state["step"] + 1}


def _seed(*address: int | str) -> Tensor:
    return torch.tensor(torch_seed(*address))  # type: ignore[arg-type]
