"""FedNTD: what the global model knows of the classes that are not true is not forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Start
from fedgh.task.base import mean_over_rows

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedNTD(TwoLosses):
    """Minimize ``loss + beta T^2 KL(q_g || q)``, q the softmax of all logits but the true one, over T.

    q_g is that of the received model, in evaluation mode with the running statistics it came with. The true logit gets
    no gradient from the distillation, so with two classes, or with ``beta: 0``, it is FedAvg (at ``beta: 0`` to the
    bit).

    Args:
        beta: Strength of the distillation, >= 0; 1 in the authors' configuration.
        temperature: T, > 0; 1 in the authors' configuration (3 where their class is built without one).

    Reference:
        Lee, Jeong, Shin, Bae, Yun: "Preservation of the Global Knowledge by Not-True Distillation in Federated
        Learning", NeurIPS 2022, the local objective (cross-entropy plus beta times the not-true distillation), and the
        released code, whose defaults these are.
    Departures:
        The received model is in evaluation mode for every client; in the release it is so for all but the first one of
        a run (their networks have no normalization).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"classification"})

    beta: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", "0 (FedAvg) or more; 1 in the authors' code", self.beta)
        require(self.temperature > 0, "temperature", "positive; 1 in the authors' code", self.temperature)

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model, with its running statistics at hand."""
        return Start(client.received.params, client.received.buffers, {"buffers": client.received.buffers})

    def terms(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the distillation, the mean over the rows that count."""
        if self.beta == 0:
            return self._task_loss(batch, forward, params), None
        inputs, targets = batch
        outputs, _ = forward(params, inputs)
        with torch.no_grad():
            wanted, _ = forward.evaluated(global_params, inputs, state["buffers"])
        ours, theirs = (not_true(z / self.temperature, targets).log_softmax(1) for z in (outputs, wanted))
        distillation = mean_over_rows((theirs.exp() * (theirs - ours)).sum(1), targets)
        return forward.task.loss(outputs, targets), self.beta * self.temperature**2 * distillation


def not_true(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logits of all classes but the true one, ``(B, classes - 1)``; rows of padding lose the first.

    Args:
        logits: ``(B, classes)``.
        targets: ``(B,)``.
    """
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, places + (places >= targets.clamp(min=0)[:, None]))
