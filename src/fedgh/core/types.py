"""What travels between the parts of a federation: plain records, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgh.core.updates import UpdateMatrix

ClientState = dict[str, Tensor]
"""What one client keeps between the rounds it takes part in, by name."""


@dataclass(frozen=True)
class ServerState:
    """Everything the server carries from one round to the next.

    Attributes:
        round_index: Rounds finished so far; also the index t of the round to come.
        params: Trainable parameters of the global model, ``(params,)``.
        buffers: Floating buffers (running statistics) of the global model, ``(buffers,)``.
        counters: Integer buffers of the global model, ``(counters,)`` int64.
        optimizer: State of the server optimizer.
        aggregator: State of the aggregator, for the rules that have one.
        clients: State per client id, created lazily by the algorithms that keep one.
    """

    round_index: int
    params: Tensor
    buffers: Tensor
    counters: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    aggregator: dict[str, Tensor] = field(default_factory=dict)
    clients: Mapping[int, ClientState] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortResult:
    """What a cohort of K clients hands to the server; row k of everything belongs to ``client_ids[k]``.

    Attributes:
        client_ids: Ascending, so that nothing depends on the order in which clients ran.
        updates: ``local - global`` of every client, ``(clients, params)``.
        buffers: Local floating buffers, ``(clients, buffers)``.
        counters: Local integer buffers, ``(clients, counters)``.
        num_examples: n_k, ``(clients,)`` float64.
        local_steps: tau_k, optimizer steps taken, ``(clients,)`` int64.
        train_loss: Mean loss over a client's steps, ``(clients,)`` float64.
        client_states: New client states by id; only of algorithms that keep one.
    """

    client_ids: tuple[int, ...]
    updates: UpdateMatrix
    buffers: Tensor
    counters: Tensor
    num_examples: Tensor
    local_steps: Tensor
    train_loss: Tensor
    client_states: Mapping[int, ClientState] = field(default_factory=dict)

    def select(self, keep: Tensor) -> CohortResult:
        """Return the rows where ``keep`` (clients,) is true, as copies."""
        ids = tuple(k for k, kept in zip(self.client_ids, keep.tolist(), strict=True) if kept)
        return CohortResult(
            client_ids=ids,
            updates=self.updates.select(keep),
            buffers=self.buffers[keep.to(self.buffers.device)],
            counters=self.counters[keep.to(self.counters.device)],
            num_examples=self.num_examples[keep],
            local_steps=self.local_steps[keep],
            train_loss=self.train_loss[keep],
            client_states={k: state for k, state in self.client_states.items() if k in ids},
        )


@dataclass(frozen=True)
class Cohort:
    """What an aggregation rule may know of the clients whose updates it combines, besides their Gram matrix.

    Attributes:
        client_ids: Ascending client ids.
        weights: How much each client counts, ``(clients,)`` float64 on the CPU: n_k/n, or what the algorithm made of
            it (FedNova). Non-negative; the sum need not be one.
        losses: Mean local training loss, ``(clients,)`` float64.
        seed: Seed of the experiment.
        round_index: Round t, from 0.
    """

    client_ids: tuple[int, ...]
    weights: Tensor
    losses: Tensor
    seed: int
    round_index: int

    def __len__(self) -> int:
        return len(self.client_ids)

    @staticmethod
    def of(weights: Tensor, seed: int = 0, round_index: int = 0) -> Cohort:
        """Return a cohort of clients 0, 1, ... with these weights; for notebooks and tests."""
        losses = torch.zeros(len(weights), dtype=torch.float64)
        return Cohort(tuple(range(len(weights))), weights.to(torch.float64), losses, seed, round_index)
