"""Ditto: a personal model beside the global one, pulled towards it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.own_tensors import SecondModel
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, GlobalModel

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class Ditto(SecondModel):
    """Train the global model as FedAvg does; on the same batches step ``v <- v - lr (grad f(v) + lam (v - w))``.

    w is the received model throughout the round. v has running statistics of its own and drops what the other model
    drops; it moves only when its client takes part, and begins as the initial model, which a client is sent until it
    has one of its own. The global model never sees v: it is FedAvg's to the bit for any ``lam``, as are aggregation
    and harmonization. With ``lam: 0`` v is trained on the client's data alone.

    Args:
        lam: Pull towards the global model, >= 0; 1 in the authors' scripts.
        personal_lr: Step size of v, > 0; null for the local one, as the authors do.

    Reference:
        Li, Hu, Beirami, Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
        algorithm 1, and the TensorFlow release.
    Departures:
        E epochs of local work instead of a number of batches; n_k-weighted instead of uniform averaging (the authors
        draw clients in proportion to n_k). v takes plain steps, without the momentum and weight decay of the optimizer.
    """

    lam: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "0 (local training) or more; 1 in the authors' scripts", self.lam)

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Step the personal model, and return the gradient of the other."""
        v = state["v"].detach()
        own, statistics = self.second_gradient(batch, forward, v, global_params, state)
        v = v - state["lr"] * (own + self.lam * (v - global_params))
        gradient, loss, _ = super().local_gradient(batch, forward, params, global_params, state)
        return gradient, loss, {**state, "v": v, "buffers": statistics}

    def personal(self, client: ClientView) -> GlobalModel:
        """Return v."""
        own = self.own(client)
        return replace(client.received, params=own["v"], buffers=own["buffers"])
