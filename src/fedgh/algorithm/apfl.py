"""APFL: a personal model mixed with the global one, by a share that is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.own_tensors import SecondModel
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, GlobalModel, ServerState, Start
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class APFL(SecondModel):
    """Clients use ``m = alpha v + (1 - alpha) w``; beside FedAvg's steps of w they step v and the share alpha.

    ``v <- v - lr alpha grad f(m)`` and ``alpha <- clip(alpha - lr <v - w, grad f(m)>, 0, 1)``, on the same batch and
    all at the w, v and alpha before the step; w is the client's local model meanwhile. A client is evaluated with the
    current global w. The global model never sees v: it is FedAvg's to the bit. m has running statistics of its own.

    Args:
        alpha: Share at first, 0 to 1; 0.5 in the authors' code.
        adapt: When alpha moves: ``every_step`` (the paper), ``first_step`` of a round (the authors' code, where asked
            for) or ``never``.
        personal_lr: Step size of v and alpha, > 0; null for the local one.

    Reference:
        Deng, Kamani, Mahdavi: "Adaptive Personalized Federated Learning", arXiv 2003.13461, algorithm 1 and the
        gradient of alpha. Their code (FedTorch) was compared with.
    Departures:
        Their code mixes the outputs of both models, not their parameters, steps w before v, and pulls alpha to 0 by
        0.02 alpha, which is not in the paper. v takes plain steps. A client that has never taken part has the initial
        v and alpha.
    """

    alpha: float
    adapt: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, "alpha", "a share from 0 (the global model) to 1 (the personal one)", self.alpha)
        known = ("every_step", "first_step", "never")
        require(self.adapt in known, "adapt", f"one of {', '.join(known)}", self.adapt)

    def first(self, server: ServerState, blocks: Sequence[Block]) -> ClientState:
        """Return the initial model and share."""
        return {**super().first(server, blocks), "alpha": server.params.new_tensor(self.alpha)}

    def prepare(self, client: ClientView) -> Start:
        """Start with the rate of the share, too."""
        start = super().prepare(client)
        rate = start.state["lr"] * (self.adapt != "never")
        return replace(start, state={**start.state, "alpha_lr": rate})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Step v and alpha, and return the gradient of w."""
        v, w, alpha = state["v"].detach(), params.detach(), state["alpha"]
        own, statistics = self.second_gradient(batch, forward, alpha * v + (1 - alpha) * w, global_params, state)
        after = {
            **state,
            "v": v - state["lr"] * alpha * own,
            "alpha": (alpha - state["alpha_lr"] * ((v - w) @ own)).clamp(0, 1),
            "alpha_lr": state["alpha_lr"] * (self.adapt == "every_step"),
            "buffers": statistics,
        }
        gradient, loss, _ = super().local_gradient(batch, forward, params, global_params, state)
        return gradient, loss, after

    def personal(self, client: ClientView) -> GlobalModel:
        """Return m, of v and alpha as they are and the current w."""
        own, w = self.own(client), client.received.params
        mixed = own["alpha"] * own["v"] + (1 - own["alpha"]) * w
        return replace(client.received, params=mixed, buffers=own["buffers"])
