"""FAL: federated adversarial learning, every client trains on inputs that are changed to its model's harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.attack import pgd
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Start

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FAL(Algorithm):
    """Minimize ``max_{|delta| <= epsilon} loss(theta; x + delta)``: the inner maximum by projected ascent, each step.

    The attack is on the client's own model of the moment, with the batch's own statistics and the same dropped features
    as the step that follows; running statistics see attacked inputs alone. It starts at the input itself and stays
    within what a pixel can be. Robust accuracy is measured by ``callback=robust``. With ``epsilon: 0`` it is FedAvg to
    the bit.

    Args:
        epsilon: Largest change of a pixel, as a part of its range, >= 0; 8/255 on CIFAR-10.
        step_size: Change of a pixel in a step of the attack, > 0; 2/255.
        attack_steps: Steps of the attack, >= 1; 7 to 10.

    Reference:
        Li, Song, Yang: "Federated Adversarial Learning: A Framework with Convergence Analysis", ICML 2023, algorithm 1.
        Madry et al., ICLR 2018, for the attack.
    Departures:
        Signed ascent in the largest change (the paper bounds and projects in general). No random start.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"images"})

    epsilon: float
    step_size: float
    attack_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.epsilon <= 1, "epsilon", "from 0 (FedAvg) to 1; 0.031 is 8/255", self.epsilon)
        require(self.step_size > 0, "step_size", "positive; 0.008 is 2/255", self.step_size)
        require(self.attack_steps >= 1, "attack_steps", "1 or more; try 7", self.attack_steps)

    def prepare(self, client: ClientView) -> Start:
        """Take the range of a pixel as the model sees it."""
        low, high = client.input_range
        width = high - low
        state = {"low": low, "high": high, "epsilon": self.epsilon * width, "step": self.step_size * width}
        return Start(client.received.params, client.received.buffers, state)

    def local_loss(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> Tensor:
        """Return the loss on attacked inputs."""
        if self.epsilon == 0:
            return super().local_loss(batch, forward, params, global_params, state)
        inputs, targets = batch
        fixed = params.detach()

        def harm(attacked: Tensor) -> Tensor:
            with forward.same_draws():
                return forward.task.loss(forward.frozen(fixed, attacked)[0], targets)

        ball = state["low"], state["high"], state["epsilon"], state["step"]
        attacked = pgd(harm, inputs.detach(), ball, self.attack_steps)
        return super().local_loss((attacked, targets), forward, params, global_params, state)
