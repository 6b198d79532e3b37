"""FedLAG: the layers on which clients conflict most become personal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.core.groups import conflicting_pairs, group_grams, group_names, group_of_block
from fedgh.core.types import Broadcast, CohortResult, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class FedLAG(Algorithm):
    """Share everything while conflicts are counted, then keep the layers that had most with the clients.

    For ``warmup_rounds`` this is FedAvg, and layer l's score grows by the pairs i < j of participants with
    ``cos(g_i^l, g_j^l) < threshold``. Then the ``num_private`` layers with the largest scores stay with the clients,
    who go on from their own last values of them (the global ones, if they have never taken part): they are zero in
    every update and never travel again; the others are averaged as before. With ``num_private: 0`` it is FedAvg to the
    bit.

    Args:
        num_private: Layers that become personal (the paper's k), 0 or more; all, if there are no more.
        warmup_rounds: Rounds with everything shared, at least 1; the paper: half of all, at most 30.
        threshold: Cosine below which a pair conflicts (the paper's xi), in [-1, 1]. At -1 nothing counts, all scores
            tie, and the first layers are private.
        scope: What a layer is: ``layer``, the tensors of one module together, or ``block``, every parameter tensor,
            as released, where a bias has a far noisier cosine than a weight.
        choice: Who is private: ``conflict``, the layers with the largest scores. Controls of ours, which tell the
            criterion from mere personalization: ``least``, those with the smallest, ``first`` and ``last``.

    Reference:
        Nguyen et al.: "Towards Layer-Wise Personalized Federated Learning: Adaptive Layer Disentanglement via
        Conflicting Gradients", arXiv 2410.02845, from the formula; the released code was read, not followed.
    Departures:
        Counts on the clients' updates (released: on the gradient of the last batch). After its warm-up the released
        download assigns to loop variables only, so that no parameter reaches a client any more and everybody trains
        alone; here the shared layers do. Its names of layers and its gradients shift against each other where there are
        running statistics; here layers are parameters, and running statistics are shared. Of equal scores the earlier
        layer is private. ``federation/bytes_down`` goes on counting private layers, which need not be sent.
    """

    num_private: int
    warmup_rounds: int
    threshold: float
    scope: str
    choice: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_private >= 0, "num_private", "0 (FedAvg) or more", self.num_private)
        require(self.warmup_rounds >= 1, "warmup_rounds", "at least 1", self.warmup_rounds)
        require(-1 <= self.threshold <= 1, "threshold", "in [-1, 1]", self.threshold)
        require(self.scope in ("layer", "block"), "scope", "layer or block", self.scope)
        choices = ("conflict", "least", "first", "last")
        require(self.choice in choices, "choice", f"one of {', '.join(choices)}", self.choice)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with no conflict counted and nothing private."""
        scores = torch.zeros(int(group_of_block(tuple(blocks), self.scope).max()) + 1, dtype=torch.float64)
        private = torch.zeros(len(scores), dtype=torch.bool)
        memory = {"scores": scores, "pairs": torch.zeros((), dtype=torch.float64), "private": private}
        return replace(server, memory=memory)

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:  # noqa: ARG002
        """Say which layers are private."""
        return Broadcast({"private": server.memory["private"]})

    def prepare(self, client: ClientView) -> Start:
        """Put the client's own values of private layers into the model it was sent."""
        return Start(self._own(client), client.received.buffers)

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep all parameters, of which any may become private; send nothing of those that are."""
        private = self._columns(client)
        trained.update.masked_fill_(private, 0.0)
        sent = trained.update.element_size() * int((~private).sum())
        return Report({"params": trained.params.clone()}, update_bytes=sent)

    def personal(self, client: ClientView) -> GlobalModel:
        """Return the current shared layers with the client's own; in the warm-up the global model."""
        if not bool(client.message["private"].any()) or not client.state:
            return client.received
        return replace(client.received, params=self._own(client))

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Count conflicts in the warm-up, and choose at its end."""
        if before.round_index >= self.warmup_rounds:
            return after
        group = group_of_block(result.updates.blocks, self.scope)
        found = conflicting_pairs(group_grams(result.updates, group), self.threshold)
        memory = dict(before.memory)
        memory["scores"] = memory["scores"] + found.to(memory["scores"])
        memory["pairs"] = memory["pairs"] + len(result.client_ids) * (len(result.client_ids) - 1) / 2
        if before.round_index + 1 == self.warmup_rounds:
            memory["private"] = self.chosen(memory["scores"])
        return replace(after, memory=memory)

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:
        """Return of every layer the share of pairs that have conflicted so far, and whether it is private."""
        shares = (server.memory["scores"] / server.memory["pairs"].clamp_min(1)).tolist()
        names = group_names(result.updates.blocks, self.scope)
        numbers = {f"algorithm/conflict/{name}": share for name, share in zip(names, shares, strict=True)}
        private = zip(names, server.memory["private"].tolist(), strict=True)
        return numbers | {f"algorithm/private/{name}": float(one) for name, one in private}

    def chosen(self, scores: Tensor) -> Tensor:
        """Return which layers become private, ``(layers,)`` bool."""
        places = torch.arange(len(scores), dtype=torch.float64, device=scores.device)
        order = {"conflict": -scores, "least": scores, "first": places, "last": -places}[self.choice]
        private = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        private[order.argsort(stable=True)[: self.num_private]] = True
        return private

    def _own(self, client: ClientView) -> Tensor:
        """Return the received parameters with the client's own in private layers, ``(params,)``."""
        received = client.received.params
        return torch.where(self._columns(client), client.state["params"], received) if client.state else received

    def _columns(self, client: ClientView) -> Tensor:
        """Return which columns are private, ``(params,)`` bool."""
        blocks = client.model.blocks
        group, private = group_of_block(blocks, self.scope), client.message["private"]
        sizes = torch.tensor([block.stop - block.start for block in blocks], device=private.device)
        return private[group.to(private.device)].repeat_interleave(sizes)
