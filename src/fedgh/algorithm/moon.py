"""MOON: features near the global model's and away from the previous local model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from fedgh.algorithm.base import Batch, require
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, Report, Start, Trained
from fedgh.task.base import mean_over_rows

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class Moon(TwoLosses):
    """Minimize ``loss + mu * mean_i -log(e^(s_g/T) / (e^(s_g/T) + e^(s_p/T)))``, s the cosine of features.

    s_g is the cosine to the features of the received model, s_p to those of the model that this client had at the end
    of its last participation; both are run in evaluation mode with their own running statistics. With ``mu: 0`` it is
    FedAvg to the bit.

    Args:
        mu: Strength of the contrast, >= 0; 1 in the authors' code, which tunes it over 0.1, 1, 5, 10.
        temperature: T, > 0; 0.5.

    Reference:
        Li, He, Song: "Model-Contrastive Federated Learning", CVPR 2021, equation (3).
    Departures:
        Features are what the model feeds its head; the authors put a projection head of two layers before it. One
        previous model is kept (the authors' default). At its first participation a client's previous model is the
        received one, which gives the loss log 2 and no gradient; in the authors' code from the second round on it is
        an initial network of the client's own.
    """

    mu: float
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "0 (FedAvg) or more; 1 in the authors' code", self.mu)
        require(self.temperature > 0, "temperature", "positive; 0.5 in the authors' code", self.temperature)

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model, with the previous one and the statistics of both at hand."""
        received = client.received
        previous = client.state or {"previous": received.params, "previous_buffers": received.buffers}
        return Start(received.params, received.buffers, {**previous, "buffers": received.buffers})

    def terms(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the contrast."""
        if self.mu == 0:
            return self._task_loss(batch, forward, params), None
        inputs, targets = batch
        outputs, features = forward(params, inputs)
        with torch.no_grad():
            _, wanted = forward.evaluated(global_params, inputs, state["buffers"])
            _, previous = forward.evaluated(state["previous"], inputs, state["previous_buffers"])
        features, wanted, previous = (z.flatten(1) for z in (features, wanted, previous))
        gap = cosine_similarity(features, previous) - cosine_similarity(features, wanted)
        contrast = mean_over_rows(softplus(gap / self.temperature), targets)
        return forward.task.loss(outputs, targets), self.mu * contrast

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the trained model."""
        kept = {"previous": trained.params.clone(), "previous_buffers": trained.buffers.clone()}
        return self._with_conflict(Report(kept), trained)
