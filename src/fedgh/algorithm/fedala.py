"""FedALA: every client mixes the received model into its own, entry by entry, before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import require
from fedgh.algorithm.own_tensors import OwnTensors
from fedgh.core.types import ClientState, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block, columns_of

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

LAST, SPREAD = 10, 0.1
"""Learning the weights at first ends when the losses of so many last epochs have at most this standard deviation."""


@dataclass(frozen=True, kw_only=True)
class FedALA(OwnTensors):
    """Start at ``s = theta + (w - theta) W`` in the upper layers and at w in the lower ones; then train as FedAvg does.

    w is received, theta the client's last local model, W one weight in [0, 1] per entry, 1 at first. Before it trains,
    the client learns W on a slice of its examples, w and theta fixed: ``W <- clip(W - eta df/ds (w - theta), 0, 1)``,
    batch by batch, once through the slice; the first time until the loss of the epochs' last batches settles, 11 epochs
    at least. Where w and theta are the same nothing is learnt. Updates are relative to w. With ``eta: 0`` it is FedAvg
    to the bit.

    A client is evaluated with s, made anew from the current w: the model with which it would start the next round.

    Args:
        adaptive_parameters: Names of the upper layers, as shell patterns; ``head.*``.
        eta: Step size of W, >= 0; 1.
        share: Of the client's examples, those next to each other from a random one on, in (0, 1]; 0.8.
        first_epochs: Epochs of the first time, at most; the authors set no bound.

    Reference:
        Zhang et al.: "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI 2023, equations (5)
        to (7), and the released code.
    Departures:
        The release counts parameter tensors from the end (2: weight and bias of the classifier); here layers are named.
        W is learnt in evaluation mode. The release mixes every client's model in every round and overwrites those of
        clients not drawn; here theta and W move only when a client takes part. A client that has never taken part has
        the initial model as theta.
    """

    adaptive_parameters: tuple[str, ...]
    eta: float
    share: float
    first_epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, "eta", "0 (FedAvg) or more; 1 in the authors' code", self.eta)
        require(0 < self.share <= 1, "share", "above 0 and at most 1, such as 0.8", self.share)
        fits = isinstance(self.first_epochs, int) and self.first_epochs >= 1
        require(fits, "first_epochs", "a positive integer, such as 50", self.first_epochs)

    def first(self, server: ServerState, blocks: Sequence[Block]) -> ClientState:
        """Return the initial model, weights of one, and that nothing was learnt yet."""
        upper = columns_of(blocks, self.adaptive_parameters)
        weights = server.params.new_ones(int(upper.sum()))
        return {"theta": server.params, "weights": weights, "learnt": torch.zeros_like(weights[0], dtype=torch.int64)}

    def mixed(self, client: ClientView) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a client starts, ``(params,)``, its weights, and whether they were learnt before."""
        own, received = self.own(client), client.received.params
        theta, weights, learnt = own["theta"], own["weights"], own["learnt"]
        upper = columns_of(client.model.blocks, self.adaptive_parameters).to(received.device)
        away = (received - theta)[upper]

        def start() -> Tensor:  # lerp is exact at weights of 0 and 1
            return received.masked_scatter(upper, torch.lerp(theta[upper], received[upper], weights))

        if self.eta == 0 or torch.equal(theta, received):
            return start(), weights, learnt
        losses = list[float]()
        batches = self._slice(client)
        while not losses or (not learnt and len(losses) < self.first_epochs and not _settled(losses)):
            for inputs, targets in batches:
                gradient, loss = client.gradient(start(), inputs, targets)
                weights = (weights - self.eta * gradient[upper] * away).clamp(0, 1)
            losses.append(float(loss))
        return start(), weights, torch.ones_like(learnt)

    def _slice(self, client: ClientView) -> list[tuple[Tensor, Tensor]]:
        inputs, targets = (torch.cat(parts) for parts in zip(*client.examples(), strict=True))
        count = max(1, int(self.share * len(targets)))
        begin = int(client.generator("fedala").integers(len(targets) - count + 1))
        chosen = slice(begin, begin + count)
        return list(
            zip(
                torch.split(inputs[chosen], self.batch_size), torch.split(targets[chosen], self.batch_size), strict=True
            )
        )

    def prepare(self, client: ClientView) -> Start:
        """Learn the weights, and start at the mixture."""
        params, weights, learnt = self.mixed(client)
        return Start(params, client.received.buffers, {"weights": weights, "learnt": learnt})

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the local model and the weights."""
        return Report({"theta": trained.params.clone(), **trained.state})

    def personal(self, client: ClientView) -> GlobalModel:
        """Return the mixture."""
        return replace(client.received, params=self.mixed(client)[0])


def _settled(losses: list[float]) -> bool:
    return len(losses) > LAST and float(torch.tensor(losses[-LAST:]).std(correction=0)) < SPREAD
