"""FedCE: clients count by what they contribute, in directions of their own and on their own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.core.types import Broadcast, CohortResult, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

FLOOR = 1e-3
"""Least share of a client in either part and in the weights, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class FedCE(Algorithm):
    """Train as FedAvg does, and count client k by its estimated contribution.

    Two parts, each floored and normalized over the participants: ``1 - cos(D_k, sum_{i != k} c_i D_i)``, the cosine
    being the mean over the rounds that k took part in and c the weights of the round before, equal at first; and the
    error on k's data of the model without k, ``(w - c_k theta_k) / (1 - c_k)`` with theta_k k's model of last round. It
    is made by the client, who is told its c_k; for who was absent last round it is w itself. ``mode`` joins the
    parts. The Gram matrix of the updates is all that the server needs. The first part rewards unlike directions, the
    opposite of IDA. With ``strength: 0`` it is FedAvg to the bit.

    Args:
        mode: ``plus`` (the sum of both parts) or ``times`` (their product).
        strength: Share of the contribution in the weights, the rest being p_k; 1 is the paper's.

    Reference:
        Jiang et al.: "Fair Federated Medical Image Segmentation via Client Contribution Estimation", CVPR 2023, and the
        authors' code in NVFlare.
    Departures:
        The error is the mean training loss in evaluation mode; the authors have one minus the Dice score on a
        validation split. Partial participation is ours. Another aggregator than the mean, or another server rate,
        makes the model without k an approximation. ``strength`` is ours.
    """

    mode: str
    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mode in ("plus", "times"), "mode", "plus or times", self.mode)
        require(0 <= self.strength <= 1, "strength", "from 0 (FedAvg) to 1 (the paper)", self.strength)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with equal weights that nobody has used yet."""
        nothing = torch.zeros_like(num_examples)
        memory = {"weights": nothing + 1 / len(nothing), "used": nothing, "cosines": nothing, "rounds": nothing}
        return replace(server, memory=memory)

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Tell every client how much it counted in the round before."""
        used = server.memory["used"]
        return Broadcast(own={k: {"weight": used[k]} for k in client_ids})

    def prepare(self, client: ClientView) -> Start:
        """Take the loss of the model without this client."""
        received, weight = client.received, client.message["weight"].to(client.received.params)
        without = (received.params - weight * client.state.get("params", received.params)) / (1 - weight)
        if weight == 0 or weight == 1:  # absent last round, or nobody but it took part
            without = received.params
        return Start(received.params, received.buffers, {"error": weight.new_tensor(client.loss(without))})

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Keep the model that was trained, and send the error of the one without it."""
        return Report({"params": trained.params.clone()}, {"error": trained.state["error"]})

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return the contributions, mixed with p_k, ``(clients,)`` float64."""
        if self.strength == 0:
            return weights
        return (1 - self.strength) * weights + self.strength * self._contributions(result)[0]

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:  # noqa: ARG002
        """Remember weights and cosines of the participants, and that the others were absent."""
        memory, ids = {name: tensor.clone() for name, tensor in result.memory.items()}, list(result.client_ids)
        shares = self.client_shares(result.num_examples)
        weights, cosines = self.client_weights(shares, result).to(memory["used"]), self._contributions(result)[1]
        memory["weights"][ids] = memory["used"].zero_()[ids] = weights
        memory["cosines"][ids] += cosines.to(weights)
        memory["rounds"][ids] += 1
        return replace(after, memory=memory)

    def _contributions(self, result: CohortResult) -> tuple[Tensor, Tensor]:
        """Return contributions that sum to one, and this round's cosines, both ``(clients,)``."""
        ids, memory = list(result.client_ids), {name: tensor.cpu() for name, tensor in result.memory.items()}
        cosines = cosines_with_the_others(result.updates.gram(), _floored(memory["weights"][ids]))
        mean = (memory["cosines"][ids] + cosines) / (memory["rounds"][ids] + 1)
        apart, error = _floored(1 - mean), _floored(result.messages["error"].cpu().to(mean))
        return _floored(apart + error if self.mode == "plus" else apart * error), cosines


def cosines_with_the_others(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the cosine of every row with the weighted sum of the others, 0 where one of them vanishes, ``(clients,)``.

    Args:
        gram: ``(clients, clients)`` float64.
        weights: ``(clients,)``.
    """
    own, all_of_them = gram.diagonal(), gram @ weights
    inner = all_of_them - weights * own
    squared = weights @ all_of_them - 2 * weights * all_of_them + weights.square() * own
    scale = (own.clamp_min(0) * squared.clamp_min(0)).sqrt()
    return torch.where(scale > 0, inner / scale, 0.0).clamp(-1, 1)


def _floored(values: Tensor) -> Tensor:
    """Return shares of a sum, none below the floor, that add up to one; equal ones of zeros."""
    total = values.sum()
    shares = values / total if total > 0 else torch.full_like(values, 1 / len(values))
    shares = shares.clamp_min(FLOOR)
    return shares / shares.sum()
