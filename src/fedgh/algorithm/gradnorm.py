"""GradNorm inside a client: its several tasks are weighed so that their gradients on the shared parameters balance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.algorithm.partial import columns
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState, CohortResult, Report, ServerState, Start, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class GradNorm(Algorithm):
    """Train on ``sum_i p_i L_i / T`` over the T tasks, with ``p = T softmax(z)`` moved by GradNorm after every step.

    ``z_i -= weight_lr p_i (h_i - mean_j(p_j h_j))`` with ``h_i = sign(p_i |g_i| - mean r_i^gamma) |g_i|``, g_i the
    gradient of task i on the parameters that tasks share and r_i its relative inverse training rate. The loss of
    reference ``L_i(0)`` is that of a client's first step. z and the reference stay with the client from round to round.
    With one target, or ``weight_lr: 0``, it is FedAvg; in the latter case but for rounding.

    Args:
        gamma: How strongly tasks that lag behind are helped, 0 or more; 1.5 in the paper on NYUv2.
        weight_lr: Step of the weights, 0 or more.
        own_parameters: Names of the parameters that tasks do not share, as shell patterns: the head.

    Reference:
        Chen, Badrinarayanan, Lee, Rabinovich: "GradNorm", ICML 2018, algorithm 1. The softmax, which keeps weights
        positive and their sum, and norms over all shared parameters are LibMTL's.
    Departures:
        The reference is the loss of the first step; LibMTL takes the mean over the first epoch. Steps are relative to
        the mean norm, so that ``weight_lr`` is a pure number. The model moves with the weights from before the step.
    """

    gamma: float
    weight_lr: float
    own_parameters: Iterable[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "0 or more; 1.5 in the paper", self.gamma)
        require(self.weight_lr >= 0, "weight_lr", "0 or more, such as 0.05", self.weight_lr)

    def prepare(self, client: ClientView) -> Start:
        """Start with the weights that the client had last, equal ones at first."""
        received = client.received
        nothing = received.params.new_zeros(client.task.num_targets)  # a reference of 0: there is none yet
        return Start(received.params, received.buffers, client.state or {"z": nothing, "reference": nothing})

    def local_gradient(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,
    ) -> tuple[Tensor, Tensor, ClientState]:
        """Return the weighted gradient of all tasks; then move their weights."""
        inputs, targets = batch

        def losses_at(argument: Tensor) -> Tensor:
            outputs, _ = forward(argument, inputs)
            return forward.task.losses(outputs, targets)

        gradients, losses = forward.gradients(losses_at, params)
        count, z = len(losses), state["z"]
        reference = torch.where(state["reference"] > 0, state["reference"], losses.detach())
        own = columns(forward.blocks, tuple(self.own_parameters), params.device)
        p, norms = count * z.softmax(0), gradients.masked_fill(own, 0.0).norm(dim=1)
        ratios = losses / reference.clamp_min(1e-12)
        rates = ratios / ratios.mean().clamp_min(1e-12)
        h = (p * norms - (p * norms).mean() * rates.pow(self.gamma)).sign() * norms / norms.mean().clamp_min(1e-12)
        moved = z - self.weight_lr * p * (h - (p * h).mean())
        loss = (p * losses).mean()
        return (p / count) @ gradients, loss, {**state, "z": moved, "reference": reference}

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the weights and the reference; tell the weights."""
        kept = {name: trained.state[name].clone() for name in ("z", "reference")}
        return Report(kept, {"loss_weights": len(kept["z"]) * kept["z"].softmax(0)})

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:  # noqa: ARG002
        """Return the mean loss weight of each task over the clients, by its place."""
        means = result.messages["loss_weights"].to(torch.float64).mean(0).tolist()
        return {f"algorithm/loss_weight/{place}": mean for place, mean in enumerate(means)}
