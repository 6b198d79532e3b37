"""AFL: the mixture of clients on which the model is worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.core.types import CohortResult, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class AFL(Algorithm):
    """Minimize the loss of the worst mixture, ``min_w max_lambda sum_k lambda_k F_k(w)`` over the simplex.

    Client k counts by lambda_k, normalized over the participants; afterwards ``lambda <- P(lambda + gamma F)``, F_k
    being its mean training loss at the model it received, in evaluation mode, and P the nearest point of the simplex.
    Where m of N take part, theirs enter with ``gamma N / m`` and the others' with 0. lambda lives on the server, for
    all clients. Updates of clients with lambda_k = 0 are still seen by rules that look for conflicts, and count for
    nothing. If no participant has a weight, all count by p_k, with which lambda begins. With ``gamma: 0`` it is FedAvg
    to the bit.

    Args:
        gamma: Step of lambda, >= 0; 0.1 and 0.01 in the reimplementation of Li et al. (fair_flearn).

    Reference:
        Mohri, Sivek, Suresh: "Agnostic Federated Learning", ICML 2019, algorithm 1 (stochastic AFL).
    Departures:
        Several local steps a round, where the paper takes one stochastic gradient. The mixture is over clients, not
        over domains. The model is the last iterate, not the average of all. Partial participation is ours.
    """

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "0 (FedAvg) or more; try 0.1", self.gamma)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with lambda = p_k, as ``weights`` says."""
        return replace(server, memory={"lambda": self.client_shares(num_examples)})

    def prepare(self, client: ClientView) -> Start:
        """Take the loss before training."""
        received = client.received
        return Start(
            received.params, received.buffers, {"loss": received.params.new_tensor(client.loss(received.params))}
        )

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Send the loss."""
        return Report(client.state, {"loss": trained.state["loss"]})

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return lambda of the participants, normalized, ``(clients,)`` float64."""
        if self.gamma == 0:
            return weights
        mixture = result.memory["lambda"].cpu()[list(result.client_ids)]
        return mixture / mixture.sum() if mixture.any() else weights

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Move lambda towards the clients with large losses."""
        mixture, ids = before.memory["lambda"].clone(), list(result.client_ids)
        mixture[ids] += self.gamma * len(mixture) / len(ids) * result.messages["loss"].to(mixture)
        return replace(after, memory={"lambda": onto_simplex(mixture)})


def onto_simplex(point: Tensor) -> Tensor:
    """Return the nearest point with entries >= 0 that sum to one, ``(n,)``.

    Reference:
        Duchi et al.: "Efficient Projections onto the l1-Ball", ICML 2008, figure 1.
    """
    ordered = point.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1).to(point)
    last = int((ordered > excess).nonzero()[-1])
    return (point - excess[last]).clamp_min(0)
