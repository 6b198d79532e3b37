"""CFL: clients whose updates pull apart for good are parted into clusters with models of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.core.types import Broadcast, CohortResult, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block, UpdateMatrix

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class CFL(Algorithm):
    """Begin with one cluster, and part a cluster in two where its mean update is short while a client's is long.

    After round ``first_round``, a cluster of three clients or more is parted if ``||sum_k p_k D_k|| < eps1`` and
    ``max_k ||D_k|| > eps2``, along cosines of the updates D_k. Both parts go on from the model of the cluster. Raw
    updates are tested; each cluster's are combined by the aggregator. A client is sent its own cluster's model alone.
    An absent client is judged by its last update, and a cluster with a client who has never taken part is not parted.
    With ``eps1: 0`` it is FedAvg to the bit.

    Args:
        eps1: Bound on the length of the mean, >= 0; 0.4 in the authors' code.
        eps2: Bound on the longest update, >= 0; 1.6 there.
        scale: What the bounds mean: ``absolute`` lengths (the authors), or ``relative``: eps1 as a part of the longest
            update in the cluster, eps2 as a part of the longest of the first round, whatever model and rate.
        linkage: ``single`` makes the largest cosine across the cut least, which is the paper's bipartition;
            ``complete`` is the authors' code.
        first_round: Rounds before the first cut; 20 in the authors' code.

    Reference:
        Sattler, Mueller, Samek: "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization under
        Privacy Constraints", IEEE TNNLS 2021 (arXiv 1910.01991), algorithms 1 to 3, and the authors' code.
    Departures:
        A cut takes effect in the next round, as in the paper's recursion; the authors' code averages within the new
        clusters in the same round. Its second cut takes places within a cluster for clients; ours does not. No bound on
        the cosines across a cut. The authors average uniformly (``weights=uniform``).
    """

    one_model: ClassVar[bool] = True

    eps1: float
    eps2: float
    scale: str
    linkage: str
    first_round: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eps1 >= 0, "eps1", "0 (FedAvg) or more; 0.4 in the authors' code", self.eps1)
        require(self.eps2 >= 0, "eps2", "0 or more; 1.6 in the authors' code", self.eps2)
        require(self.scale in ("absolute", "relative"), "scale", "absolute or relative", self.scale)
        require(self.linkage in ("single", "complete"), "linkage", "single (the paper) or complete", self.linkage)
        require(self.first_round >= 0, "first_round", "0 or more; 20 in the authors' code", self.first_round)

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Begin with everybody in cluster 0."""
        cluster, longest = torch.zeros(len(num_examples), dtype=torch.int64), num_examples.new_zeros(())
        return replace(server, memory={"cluster": cluster, "num_examples": num_examples, "longest": longest})

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Tell every client which cluster's model it gets."""
        return Broadcast(own={k: {"cluster": server.memory["cluster"][k]} for k in client_ids})

    def prepare(self, client: ClientView) -> Start:
        """Start from the cluster's model."""
        model = self.personal(client)
        return Start(model.params, model.buffers, received=model)

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Remember the update for rounds in which the client is absent."""
        return Report({"update": trained.update})

    def group(self, result: CohortResult) -> Tensor:
        """Return everybody's cluster."""
        return result.memory["cluster"].cpu()[list(result.client_ids)]

    def personal(self, client: ClientView) -> GlobalModel:
        """Return the cluster's model."""
        return client.models[int(client.message["cluster"])]

    def conclude(self, before: ServerState, after: ServerState, result: CohortResult) -> ServerState:
        """Part the clusters that are done with what they have in common."""
        memory = dict(before.memory)
        if before.round_index == 0:
            rows = result.updates.rows
            memory["longest"] = rows.float().norm(dim=1).max().to(memory["longest"])
        cluster = memory["cluster"].clone()
        if before.round_index + 1 > self.first_round and self.eps1 > 0:
            for index in range(len(before.models)):
                members = (cluster == index).nonzero().flatten().tolist()
                if len(members) > 2 and (apart := self._cut(members, memory, before, result)) is not None:
                    model = after.models[index]
                    cluster[[k for k, other in zip(members, apart.tolist(), strict=True) if other]] = len(after.models)
                    after = replace(after, siblings=(*after.siblings, model))
        return replace(after, memory={**memory, "cluster": cluster})

    def metrics(self, server: ServerState, result: CohortResult) -> dict[str, float]:  # noqa: ARG002
        """Return the number of clusters."""
        return {"algorithm/clusters": float(len(server.models))}

    def _cut(
        self, members: list[int], memory: dict[str, Tensor], before: ServerState, result: CohortResult
    ) -> Tensor | None:
        """Return who of the members leaves the cluster, ``(members,)`` bool; None: it stays whole."""
        states = [result.client_states.get(k) or before.clients.get(k) for k in members]
        known = [state["update"] for state in states if state]
        if len(known) < len(members):
            return None
        gram = UpdateMatrix.of(torch.stack([update.to(known[0].device) for update in known])).gram()
        shares = self.client_shares(memory["num_examples"].cpu()[members])
        lengths = gram.diagonal().clamp_min(0).sqrt()
        mean, longest = (shares @ gram @ shares).clamp_min(0).sqrt(), lengths.max()
        of_mean, of_longest = (1.0, 1.0) if self.scale == "absolute" else (longest, memory["longest"].cpu())
        if not (mean < self.eps1 * of_mean and longest > self.eps2 * of_longest):
            return None
        return bipartition(gram / (lengths[:, None] * lengths).clamp_min(1e-300), self.linkage)


def bipartition(similarity: Tensor, linkage: str) -> Tensor:
    """Return who is in the other part than the first, ``(n,)`` bool, of two made by joining the most similar ones.

    Args:
        similarity: ``(n, n)``, symmetric, at least two.
        linkage: Two parts are as similar as their most similar members (``single``) or their least (``complete``).
    """
    join = torch.maximum if linkage == "single" else torch.minimum
    count = len(similarity)
    near, part = similarity.clone().fill_diagonal_(-torch.inf), torch.arange(count)
    for _ in range(count - 2):
        i, j = divmod(int(near.argmax()), count)
        near[i] = near[:, i] = join(near[i], near[j])
        near[i, i] = near[j] = near[:, j] = -torch.inf
        part[part == j] = i
    return part != part[0]
