"""FedLC: logits calibrated by how often a client has seen each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Start

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedLC(Algorithm):
    """Minimize the cross-entropy of ``z_c - tau n_kc^(-1/4)``, n_kc the client's training examples of class c.

    Margins are for training only; the model is evaluated on z. Where a client has equally many of all classes the loss
    is the plain one. With ``tau: 0`` it is FedAvg to the bit.

    A class that a client has none of leaves the softmax, whatever tau is: its margin is infinite, so its logit gets no
    gradient, and a client of a single class has none at all. Where most classes are missing, few clients then move a
    class's logit, and training is slow: on digits (alpha 0.1, three classes a client, seed 1) 58.8 % after 20 rounds
    and 80.8 % after 100, FedAvg 90.8 and 95.8 (with tau 0.1: 55.2 after 20). ``absent_count: 1`` lets them back in, and
    makes that 90.3 after 20.

    Args:
        tau: Strength of the calibration, >= 0; 1 in the paper for CIFAR-10, which tunes it.
        absent_count: What a class counts that a client has none of, in [0, 1]: 0 is the limit; other codes have 1e-8
            or 1e-5, margins of 100 tau and 17.8 tau, which a small tau softens.

    Reference:
        Zhang et al.: "Federated Learning with Label Distribution Skew via Logits Calibration", ICML 2022, the
        calibrated cross-entropy. We have read no code of the authors, but three reimplementations.
    Departures:
        The paper's denominator leaves out the true class, a loss without a lower bound whose gradient on the true logit
        never vanishes; as in those codes it is a softmax over all classes. Flower's baseline, too, has FedLC below
        FedAvg with Dirichlet parts (CIFAR-10, alpha 0.05: 62.5 against 68.1), and level with it with two shards each.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"classification"})

    tau: float
    absent_count: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0, "tau", "0 (FedAvg) or more; 1 in the paper for CIFAR-10", self.tau)
        require(0 <= self.absent_count <= 1, "absent_count", "from 0 (it leaves the softmax) to 1", self.absent_count)

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model, with the margin of each class at hand, ``(classes,)``."""
        counts = client.label_counts.to(client.received.params).clamp(min=self.absent_count)
        margin = counts.pow(-0.25)  # infinite where there are none
        return Start(client.received.params, client.received.buffers, {"margin": margin})

    def local_loss(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> Tensor:
        """Return the loss of the task at the calibrated logits."""
        if self.tau == 0:  # not 0 times infinity
            return super().local_loss(batch, forward, params, global_params, state)
        inputs, targets = batch
        outputs, _ = forward(params, inputs)
        return forward.task.loss(outputs - self.tau * state["margin"], targets)
