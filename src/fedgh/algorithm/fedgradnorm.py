"""FedGradNorm: personal heads, a shared body, and loss weights that the server moves from gradient norms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import require
from fedgh.algorithm.fedrep import FedRep
from fedgh.algorithm.momentum import accumulation, plain_momentum
from fedgh.core.types import CohortResult, Report, ServerState, Start, Trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedgh.client.view import ClientView
    from fedgh.core.updates import Block

DEAD_BAND = 1e-9
"""Weighted norms so near their target, against the mean norm, count as equal to it."""
NAMED = 20
"""Clients up to which each one's weight is among the metrics."""


@dataclass(frozen=True, kw_only=True)
class FedGradNorm(FedRep):
    """FedRep whose clients, each with a task of its own, count so that their gradients on the body balance.

    With weights p (sum: the number of clients, N), norms ``n_i = p_i |g_i|`` of the body's gradients and their mean,
    and ``r_i`` the inverse training rate ``F_i(t) / F_i(0)`` over its mean, the server takes a sign step on
    ``sum_i |n_i - mean(n) r_i^gamma|`` with the targets held fixed: ``p_i -= weight_lr sign(...) |g_i|``. Weights below
    the floor are lifted to it, all are scaled back to the sum they had, and the body moves with the new ones. A client
    that is absent keeps its weight. ``weight_lr: 0`` is FedRep with ``weights: uniform``.

    F_i is the loss on the client's own examples before it trains, with its own head; |g_i| is the length of its update
    of the body over the sum of the rates with which its gradients entered it.

    Args:
        gamma: How strongly tasks that lag behind are helped, 0 or more; 0 makes all norms equal.
        weight_lr: Step of the weights, 0 or more.
        relative: Divide |g_i| by the mean of all in that step, which makes ``weight_lr`` a pure number.
        weight_floor: Least weight, in (0, 1).

    Reference:
        Mortaheb, Vahapoglu, Ulukus: "FedGradNorm: Personalized Federated Gradient-Normalized Multi-Task Learning",
        arXiv 2203.13663, and Chen et al.: "GradNorm", ICML 2018, equation (2). We could read neither the paper's
        algorithm nor a release: settings, network and the order of the steps are not established, ours are stated here.
    Departures:
        p_i and not p_i n_i weigh the updates. ``relative`` is ours: else weights move by the gradients' own scale.
    """

    gamma: float
    weight_lr: float
    relative: bool
    weight_floor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "0 or more, such as 1.5", self.gamma)
        require(self.weight_lr >= 0, "weight_lr", "0 or more, such as 0.05", self.weight_lr)
        require(0 < self.weight_floor < 1, "weight_floor", "between 0 and 1, such as 0.05", self.weight_floor)
        require(self.body_epochs >= 1, "body_epochs", "at least 1: weights come from the body's updates", 0)
        plain_momentum(self, "fedgradnorm")

    def prepare(self, client: ClientView) -> Start:
        """Start as in FedRep, and measure the loss."""
        start = super().prepare(client)
        loss = torch.tensor(client.loss(start.params, start.buffers), device=start.params.device)
        return replace(start, state={"loss": loss, "initial_loss": client.state.get("initial_loss", loss)})

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep the head and the first loss; send the gradient's length, the loss, and its share of the first."""
        report = super().report(client, trained)
        loss, first = trained.state["loss"], trained.state["initial_loss"]
        steps = client.num_steps * self.body_epochs // self.local_epochs
        lr = client.lr if self.body_lr is None else self.body_lr
        norm = trained.update.norm() / (lr * accumulation(steps, plain_momentum(self, "fedgradnorm")))
        ratio = (loss / first.clamp_min(1e-12)).clamp_min(0)
        return replace(
            report,
            state={**report.state, "initial_loss": first.clone()},
            message={**report.message, "loss": loss.clone(), "ratio": ratio, "norm": norm},
        )

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        """Begin with equal weights of all clients."""
        server = super().initialize(server, blocks, num_examples, seed)
        return replace(server, memory={**server.memory, "loss_weights": torch.ones_like(num_examples)})

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:  # noqa: ARG002
        """Return the new loss weights of the participants, as shares."""
        moved = self._moved(result)
        return moved / moved.sum()

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Keep the new loss weights."""
        after = super().conclude(before, after, result)
        everyone = before.memory["loss_weights"].clone()
        everyone[list(result.client_ids)] = self._moved(result).to(everyone)
        return replace(after, memory={**after.memory, "loss_weights": everyone})

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:
        """Return the spread of the inverse training rates and, of few clients, each one's weight and loss."""
        ratios = result.messages["ratio"]
        numbers = {"algorithm/ratio_spread": float(ratios.max() - ratios.min())}
        if len(server.memory["loss_weights"]) <= NAMED:
            weights = server.memory["loss_weights"].tolist()
            numbers |= {f"algorithm/loss_weight/{k}": weights[k] for k in result.client_ids}
            losses = zip(result.client_ids, result.messages["loss"].tolist(), strict=True)
            numbers |= {f"algorithm/loss/{k}": loss for k, loss in losses}
        return numbers

    def _moved(self, result: CohortResult) -> Tensor:
        """Return the participants' new weights, ``(clients,)`` float64."""
        p = result.memory["loss_weights"].to("cpu", torch.float64)[list(result.client_ids)]
        norms, ratios = (result.messages[name].to("cpu", torch.float64) for name in ("norm", "ratio"))
        return moved_weights(p, norms, ratios, self.gamma, self.weight_lr, self.relative, self.weight_floor)


def moved_weights(
    weights: Tensor, norms: Tensor, ratios: Tensor, gamma: float, lr: float, relative: bool, floor: float
) -> Tensor:
    """Return loss weights after a step of GradNorm, whose sum is the same.

    Args:
        weights: p, ``(tasks,)``, positive.
        norms: Of the unweighted gradients, ``(tasks,)``.
        ratios: ``F_i(t) / F_i(0)``, ``(tasks,)``, not negative.
        gamma: Exponent of the relative inverse training rates.
        lr: Step.
        relative: Whether the step is relative to the mean of the norms.
        floor: Least weight before scaling back, relative to the mean weight.
    """
    mean_ratio, weighted = ratios.mean(), weights * norms
    rates = ratios / mean_ratio if mean_ratio > 0 else torch.ones_like(ratios)
    gaps = weighted - weighted.mean() * rates.pow(gamma)
    signs = torch.where(gaps.abs() > DEAD_BAND * weighted.mean(), gaps.sign(), torch.zeros_like(gaps))
    scale = norms.mean() if relative and norms.mean() > 0 else torch.ones_like(mean_ratio)
    moved = (weights - lr * signs * norms / scale).clamp_min(floor * float(weights.mean()))
    return moved * (weights.sum() / moved.sum())
