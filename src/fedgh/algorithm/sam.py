"""FedSAM: the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class SAM(Algorithm):
    """Step along ``grad f(theta + rho g / ||g||)`` with ``g = grad f(theta)``, both on the same batch.

    The norm is that of the whole gradient. Weight decay acts at theta; both passes drop the same features. With
    ``rho: 0`` it is FedAvg to the bit.

    Args:
        rho: Distance of the ascent step, >= 0; 0.1 in the authors' CIFAR-10 script.
        statistics: Running statistics take note of ``both`` passes, the second one at the shifted parameters (the
            authors' code, whose network has none), or of the ``first`` only.

    Reference:
        Caldarola, Caputo, Ciccone: "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022,
        equation (5) (FedSAM). Foret et al.: "Sharpness-Aware Minimization", ICLR 2021.
    Departures:
        No averaging over the last rounds (SWA). The adaptive variant is ``algorithm=fedasam``.
    """

    rho: float
    statistics: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "0 (FedAvg) or more; 0.1 in the authors' code", self.rho)
        require(self.statistics in ("both", "first"), "statistics", "both or first", self.statistics)

    def local_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the gradient after an ascent step, and the loss before it."""
        if self.rho == 0:
            return super().local_gradient(batch, forward, params, global_params, state)
        with forward.same_draws():
            first, loss, state = super().local_gradient(batch, forward, params, global_params, state)
        inputs, targets = batch
        run = forward if self.statistics == "both" else forward.frozen
        second, _ = forward.gradients(
            lambda theta: forward.task.loss(run(theta, inputs)[0], targets),
            params.detach() + self.rho * self._ascent(first, params.detach(), forward.blocks),
        )
        return self._mixed(first, second), loss, state

    def _ascent(self, gradient: Tensor, params: Tensor, blocks: Sequence[Block]) -> Tensor:  # noqa: ARG002
        """Return the step of length one along which the loss grows most, ``(params,)``."""
        return unit(gradient)

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:  # noqa: ARG002
        """Return the direction of the step from the gradients before and after the ascent."""
        return second


def unit(direction: Tensor) -> Tensor:
    """Return a direction ``(params,)`` at length one; zero stays zero."""
    return torch.div(direction, direction.norm() + 1e-16)
