"""Ditto: a personal model beside the global one, pulled towards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class Ditto(Algorithm):
    """Train the global model as FedAvg does; on the same batches step ``v <- v - lr (grad f(v) + lam (v - w))``.

    w is the received model throughout the round. v has running statistics of its own and drops what the other model
    drops; it moves only when its client takes part, and begins as the initial model, which a client is sent until it
    has one of its own. The global model never sees v: it is FedAvg's to the bit for any ``lam``, as are aggregation
    and harmonization. With ``lam: 0`` v is trained on the client's data alone.

    Args:
        lam: Pull towards the global model, >= 0; 1 in the authors' scripts.
        personal_lr: Step size of v, > 0; the authors use the local one.

    Reference:
        Li, Hu, Beirami, Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
        algorithm 1, and the TensorFlow release.
    Departures:
        E epochs of local work instead of a number of batches; n_k-weighted instead of uniform averaging (the authors
        draw clients in proportion to n_k). v takes plain steps, without the momentum and weight decay of the optimizer.
    """

    lam: float
    personal_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "0 (local training) or more; 1 in the authors' scripts", self.lam)
        require(self.personal_lr > 0, "personal_lr", "positive, such as algorithm.optimizer.lr", self.personal_lr)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Remember the initial model."""
        return replace(server, memory={"v": server.params, "buffers": server.buffers})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Send the initial model to those who have no personal one."""
        return Broadcast(own={k: server.memory for k in client_ids if k not in server.clients})

    def prepare(self, client: ClientView) -> Start:
        """Start with both models."""
        return Start(client.received.params, client.received.buffers, client.state or dict(client.message))

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Step the personal model, and return the gradient of the other."""
        personal = forward.with_buffers(state["buffers"])
        with forward.same_draws():
            own, _ = personal.gradients(
                lambda v: self.local_loss(batch, personal, v, global_params, state), state["v"].detach()
            )
        direction = own + self.lam * (state["v"] - global_params)
        v = torch.add(state["v"], direction, alpha=-self.personal_lr)
        gradient, loss, _ = super().local_gradient(batch, forward, params, global_params, state)
        return gradient, loss, {"v": v, "buffers": personal.statistics}

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the personal model."""
        return Report(trained.state)

    def personal(self, client: ClientView) -> GlobalModel:
        """Return v."""
        model = client.state or client.message
        return replace(client.received, params=model["v"], buffers=model["buffers"])
