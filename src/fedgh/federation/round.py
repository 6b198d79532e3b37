"""One round of a federation: sample, train, weigh, aggregate, move."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator
from fedgh.algorithm.base import Algorithm
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.flat import FlatModel
from fedgh.core.types import Cohort, CohortResult, ServerState
from fedgh.core.updates import UpdateMatrix
from fedgh.dataset.base import Dataset
from fedgh.executor.base import Executor
from fedgh.metric.collection import Metrics
from fedgh.partition.base import Partition
from fedgh.server_optimizer.base import ServerOptimizer
from fedgh.storage.client_store import update_clients

log = logging.getLogger(__name__)


class Sampler(Protocol):
    """Chooses who takes part in a round."""

    def __call__(self, num_clients: int, seed: int, round_index: int) -> list[int]:
        """Return distinct client ids."""
        ...


@dataclass(frozen=True)
class Federation:
    """The parts of a federation; a round's update is ``(weights^T C) U``.

    Attributes:
        seed: Seed of the experiment.
        dataset: Official splits, resident.
        partition: Which client owns which training examples.
        model: The model that clients and evaluation share.
        sampler: Who takes part.
        algorithm: What a client computes, and the weights.
        executor: How a cohort is trained; fills U.
        aggregator: C, or coefficients, or a coordinate-wise rule.
        server_optimizer: How the server moves.
        on_nonfinite: ``drop`` a client whose update is not finite, or ``raise``.
        buffers: ``average`` the clients' running statistics by n_k/n, or ``keep_global``.
        metrics: What an evaluation computes beside the task's own scores; None for nothing.
    """

    seed: int
    dataset: Dataset
    partition: Partition
    model: FlatModel
    sampler: Sampler
    algorithm: Algorithm
    executor: Executor
    aggregator: Aggregator
    server_optimizer: ServerOptimizer
    on_nonfinite: str = "drop"
    buffers: str = "average"
    metrics: Metrics | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("on_nonfinite", ("drop", "raise")), ("buffers", ("average", "keep_global"))):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Round:
    """What happened in a round.

    Attributes:
        server: The state after it.
        result: What the clients handed in, without those set aside.
        weights: How much each counted, ``(clients,)`` float64.
        gram: Gram matrix of the raw updates, ``(clients, clients)`` float64.
        block_grams: The same per parameter block, ``(blocks, clients, clients)``, or ``gram`` alone, ``(1, clients,
            clients)``, where that would take too much memory; they sum to ``gram``.
        aggregate: What the aggregator made of them; None if no client was left.
        dropped: Ids of the clients set aside because their update was not finite.
        seconds: Time spent per stage.
    """

    server: ServerState
    result: CohortResult
    weights: Tensor
    gram: Tensor
    block_grams: Tensor
    aggregate: Aggregate | None
    dropped: tuple[int, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def run_round(federation: Federation, server: ServerState) -> Round:
    """Run round ``server.round_index`` and return what came of it; nothing is remembered elsewhere."""
    started = perf_counter()
    client_ids = federation.sampler(len(federation.partition.client_indices), federation.seed, server.round_index)
    result = federation.executor(client_ids, server)
    trained = perf_counter()
    block_grams = result.updates.gram(by_block=True) if affordable(result.updates) else result.updates.gram()[None]
    result, block_grams, dropped = set_aside_nonfinite(result, block_grams, federation.on_nonfinite, server.round_index)
    gram = block_grams.sum(0)
    weights, aggregate = result.num_examples, None
    if result.client_ids:
        shares = result.num_examples / result.num_examples.sum()
        weights = federation.algorithm.rescale(shares, result)
        cohort = Cohort(result.client_ids, weights, result.train_loss, federation.seed, server.round_index)
        aggregate = federation.aggregator(result.updates, gram, cohort, server.aggregator)
        server = move(federation, server, result, shares, aggregate)
    else:
        log.warning("round %d: no client is left, the model stays as it is", server.round_index)
    clients = update_clients(server.clients, result.client_states, server.round_index + 1)
    server = replace(server, round_index=server.round_index + 1, clients=clients)
    seconds = {"train": trained - started, "aggregate": perf_counter() - trained}
    return Round(server, result, weights, gram, block_grams, aggregate, dropped, seconds)


def affordable(updates: UpdateMatrix) -> bool:
    """Tell whether a Gram matrix per block takes little memory: 64 MiB, or a fortieth of the updates."""
    size = len(updates.blocks) * len(updates) ** 2 * torch.float64.itemsize
    return size <= max(1 << 26, updates.rows.nbytes // 40)


def move(
    federation: Federation, server: ServerState, result: CohortResult, shares: Tensor, aggregate: Aggregate
) -> ServerState:
    """Return the server state after one step along the aggregate; buffers follow their own policy."""
    params, optimizer = federation.server_optimizer.step(server.params, aggregate.update, server.optimizer)
    buffers, counters = server.buffers, server.counters
    if federation.buffers == "average":
        buffers = shares.to(result.buffers) @ result.buffers
        counters = result.counters.amax(0)
    return replace(
        server, params=params, buffers=buffers, counters=counters, optimizer=optimizer, aggregator=aggregate.state
    )


def set_aside_nonfinite(
    result: CohortResult, block_grams: Tensor, on_nonfinite: str, round_index: int
) -> tuple[CohortResult, Tensor, tuple[int, ...]]:
    """Take out the clients whose update is not finite, before anything is weighed.

    A NaN row would make every comparison false, so a conflict-aware rule would silently become the mean and the mean
    would still be NaN.

    Returns:
        The result and Gram matrices of the others, and the ids set aside.

    Raises:
        TrainingError: If there are any and ``on_nonfinite`` is ``raise``.
    """
    suspect = ~block_grams.sum(0).diagonal().isfinite()
    finite = ~suspect
    for row in suspect.nonzero().flatten().tolist():
        finite[row] = bool(result.updates.rows[row].isfinite().all())
    dropped = tuple(k for k, ok in zip(result.client_ids, finite.tolist(), strict=True) if not ok)
    if not dropped:
        return result, block_grams, ()
    message = (
        f"round {round_index}: the update of client{'s' if len(dropped) > 1 else ''} {', '.join(map(str, dropped))} "
        "is not finite (the local loss overflowed)"
    )
    if on_nonfinite == "raise":
        raise TrainingError(
            f"{message}; lower algorithm.optimizer.lr, or go on without such clients: on_nonfinite=drop"
        )
    log.warning("%s; set aside", message)
    return result.select(finite), block_grams[:, finite][:, :, finite], dropped


def initial_state(model: FlatModel) -> ServerState:
    """Return the state before round 0: the model as it was initialized."""
    return ServerState(
        round_index=0,
        params=model.params.detach().clone(),
        buffers=model.buffers.clone(),
        counters=model.counters.clone(),
        optimizer={},
        aggregator={},
    )


def to_device(server: ServerState, device: torch.device) -> ServerState:
    """Move what a round computes with to a device; client states stay on the CPU until they are used."""
    return replace(
        server,
        params=server.params.to(device),
        buffers=server.buffers.to(device),
        counters=server.counters.to(device),
        optimizer={name: tensor.to(device) for name, tensor in server.optimizer.items()},
    )
