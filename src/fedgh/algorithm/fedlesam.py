"""FedLESAM: SAM along the global direction, known from two global models, at the cost of one gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.algorithm.sam import unit
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Report, Start, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedLESAM(Algorithm):
    """Step along ``grad f(theta + rho (v - w) / ||v - w||)``, v the model that this client was sent the time before.

    ``v - w`` is minus how the global model has moved since, an estimate of the direction in which the global loss
    grows; it stays the same all round. A client that has never taken part has ``v = w`` and trains as FedAvg's do. Loss
    and running statistics are those at the shifted parameters, where the only forward pass is. With ``rho: 0`` it is
    FedAvg to the bit.

    Args:
        rho: Length of the ascent, >= 0; 0.1 in the authors' code (0.5 in the command of their README).

    Reference:
        Fan et al.: "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
        Sharpness-aware Minimization", ICML 2024.
    Departures:
        From the release, which shifts by the last round's step for every client, divides by the sum of the layers'
        norms instead of the norm, and takes entry i of the flat step for the whole i-th layer: its numbers are not
        those of the formula. Neither FedLESAM-D nor -S. No gradient clipping at norm 10.
    """

    rho: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "0 (FedAvg) or more; 0.1 in the authors' code", self.rho)

    def prepare(self, client: ClientView) -> Start:
        """Start with the shift of this round."""
        start, w = super().prepare(client), client.received.params
        return replace(start, state={"shift": self.rho * unit(client.state.get("received", w) - w)})

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient at the shifted parameters."""
        at = params.detach() + state["shift"] if self.rho else params
        return super().local_gradient(batch, forward, at, global_params, state)

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the model that it was sent."""
        return Report({"received": client.received.params})
