"""One round of a federation: sample, train, weigh, aggregate, move."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator
from fedgh.algorithm.base import Algorithm
from fedgh.core.errors import TrainingError
from fedgh.core.flat import FlatModel
from fedgh.core.lr_schedule import Constant, LRSchedule
from fedgh.core.types import Cohort, CohortResult, GlobalModel, ServerState
from fedgh.core.updates import UpdateMatrix, all_finite
from fedgh.dataset.base import Dataset
from fedgh.executor.base import Executor
from fedgh.executor.gather import sizes_of
from fedgh.federation.clock import Clock
from fedgh.federation.evaluation import Cells, Validation, cells_of
from fedgh.federation.finite import (
    NonFiniteError,
    is_finite,
    of_the_server,
    require_finite,
    require_usable,
    set_aside_nonfinite,
)
from fedgh.federation.parts import check_parts
from fedgh.metric.collection import Metrics
from fedgh.partition.base import Partition
from fedgh.privacy.gaussian import Gaussian
from fedgh.server_optimizer.base import LayerWise, ServerOptimizer
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
        validation: What was held out of the training data, evaluated as the test split is; None for nothing.
        server_lr_schedule: What the server's learning rate is multiplied with, by round.
        clock: When clients come back, in asynchronous runs; None: a round waits for everybody.
        privacy: How updates are clipped, and noise is added, for differential privacy; None: not at all.
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
    clock: Clock | None = None
    privacy: Gaussian | None = None
    server_lr_schedule: LRSchedule = field(default_factory=Constant)
    validation: Validation | None = None

    def __post_init__(self) -> None:
        check_parts(self)

    def server_optimizer_at(self, round_index: int) -> ServerOptimizer:
        """Return the server optimizer with its learning rate of a round."""
        optimizer: Any = self.server_optimizer
        factor = self.server_lr_schedule(round_index)
        optimizer = optimizer if factor == 1 else replace(optimizer, lr=optimizer.lr * factor)
        return optimizer.on(self.model.blocks) if isinstance(optimizer, LayerWise) else optimizer

    @cached_property
    def cells(self) -> Cells:
        """Which test examples speak for which clients."""
        return cells_of(self.dataset, self.partition)

    @cached_property
    def held_out(self) -> Federation:
        """The same federation, evaluated on what was held out of the training data; there must be something."""
        return replace(self, **vars(self.validation), validation=None)

    @property
    def num_clients(self) -> int:
        """N, whoever takes part."""
        return len(self.partition.client_indices)


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
        aggregate: What the aggregator made of them; None if no client was left, or nothing finite came of them.
        dropped: Ids of the clients set aside because what they sent was not finite.
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
    """Run round ``server.round_index`` and return what came of it; nothing is remembered elsewhere.

    A round that is kept stays as it was. It holds the matrix of updates, so one that is not needed any more should be
    let go of (``del``) before the next: that takes other memory meanwhile.
    """
    started = perf_counter()
    before, t, clock = server, server.round_index, federation.clock
    if clock is None:
        client_ids = federation.sampler(federation.num_clients, federation.seed, t)
        result = federation.executor(client_ids, server)
    else:
        result, server = clock.collect(federation.executor, server)
    trained, result = perf_counter(), replace(result, memory=before.memory)
    block_grams = result.updates.gram(by_block=True) if affordable(result.updates) else result.updates.gram()[None]
    dropped: tuple[int, ...] = ()
    if not is_finite(result, block_grams):
        origin = of_the_server(federation, before)
        result, block_grams, dropped = set_aside_nonfinite(result, block_grams, federation.on_nonfinite, t, origin)
    gram, weights, aggregate = block_grams.sum(0), result.num_examples, None
    least = federation.aggregator.min_clients if dropped else 1  # too few who never were more: the rule itself says so
    if len(result.client_ids) >= least:
        try:
            after, weights, aggregate = absorb(federation, server, result, gram)
            after = federation.algorithm.conclude(before, after, result)
            require_finite(after, before)
            require_usable(federation, after, before, aggregate)
            if result.client_states:
                after = replace(after, clients=update_clients(after.clients, result.client_states, t + 1))
            server = after
        except NonFiniteError as error:
            if federation.on_nonfinite == "raise":
                raise TrainingError(
                    f"round {t + 1}: {error}; or go on without such rounds: on_nonfinite=drop"
                ) from error
            log.warning("round %d: %s; the round is set aside, the model stays as it is", t + 1, error)
            aggregate = None
    else:
        left = f"{len(result.client_ids)} of {least} clients are" if result.client_ids else "no client is"
        log.warning("round %d: %s left, the model stays as it is", t + 1, left)
    server = replace(server, round_index=t + 1)
    if clock is not None:
        server = clock.dispatch(federation.algorithm, server, federation.num_clients, federation.seed)
    seconds = {"train": trained - started, "aggregate": perf_counter() - trained}
    return Round(server, result, weights, gram, block_grams, aggregate, dropped, seconds)


def affordable(updates: UpdateMatrix) -> bool:
    """Tell whether a Gram matrix per block takes little memory: 64 MiB, or a fortieth of the updates."""
    size = len(updates.blocks) * len(updates) ** 2 * torch.float64.itemsize
    return size <= max(1 << 26, updates.rows.nbytes // 40)


def absorb(
    federation: Federation, server: ServerState, result: CohortResult, gram: Tensor
) -> tuple[ServerState, Tensor, Aggregate]:
    """Weigh, aggregate and step, each global model along the updates that are for it.

    Returns:
        The state after it, the weights ``(clients,)``, and what the aggregator made of all updates.

    Raises:
        NonFiniteError: If a weight or an aggregate is not finite.
    """
    groups = federation.algorithm.group(result)
    if groups is not None:
        return absorb_groups(federation, server, result, gram, groups)
    model, weights, aggregate = absorb_model(federation, server.models[0], result, gram, server.round_index)
    return server.with_model(0, model), weights, aggregate


def absorb_groups(
    federation: Federation, server: ServerState, result: CohortResult, gram: Tensor, groups: Tensor
) -> tuple[ServerState, Tensor, Aggregate]:
    """Do the same for several global models, ``groups`` ``(clients,)`` saying which one each update is for."""
    weights = torch.zeros(len(groups), dtype=torch.float64)
    update, coefficients = torch.zeros_like(server.params), torch.zeros_like(weights)
    for index in sorted(set(groups.tolist())):
        mine = groups == index
        members, products = result.select(mine), gram[mine][:, mine]
        model, weights[mine], aggregate = absorb_model(
            federation, server.models[index], members, products, server.round_index
        )
        server = server.with_model(index, model)
        update = update + aggregate.update
        if aggregate.coefficients is not None and aggregate.coefficients.dim() == 1:
            coefficients[mine] = aggregate.coefficients
    return server, weights, Aggregate(update, coefficients)


def absorb_model(
    federation: Federation, model: GlobalModel, result: CohortResult, gram: Tensor, round_index: int
) -> tuple[GlobalModel, Tensor, Aggregate]:
    """Return a global model after one server step along the aggregate of these updates; and weights and aggregate."""
    weights = federation.algorithm.client_weights(federation.algorithm.client_shares(result.num_examples), result)
    if federation.clock is not None:
        weights = federation.clock.discounted(weights, result)
    if not (all_finite(weights) and bool((weights >= 0).all())):
        raise NonFiniteError(
            f"{type(federation.algorithm).__name__} gives clients the weights {weights.tolist()}, which must be "
            "finite and not negative"
        )
    cohort = Cohort(result.client_ids, weights, result.train_loss, federation.seed, round_index, model.params)
    aggregate = federation.aggregator(result.updates, gram, cohort, model.aggregator)
    if not all_finite(aggregate.update):
        raise NonFiniteError(f"the aggregate of {type(federation.aggregator).__name__} is not finite")
    if federation.privacy is not None and federation.privacy.noise_at == "server":
        aggregate = _noised(federation, aggregate, weights, round_index)
    return server_step(federation, model, result, aggregate, round_index), weights, aggregate


def _noised(federation: Federation, aggregate: Aggregate, weights: Tensor, round_index: int) -> Aggregate:
    """Return the mean with the server's noise, which hides whoever counts most; nothing where nothing is shared."""
    privacy, shared = federation.privacy, federation.executor.shared
    if privacy is None or privacy.noise_multiplier == 0:
        return aggregate
    noise = privacy.noise(aggregate.update, float(weights.max()), federation.seed, round_index)
    return replace(aggregate, update=aggregate.update + (noise if shared is None else noise * shared))


def server_step(
    federation: Federation, model: GlobalModel, result: CohortResult, aggregate: Aggregate, round_index: int
) -> GlobalModel:
    """Return a global model after one server step along the aggregate; buffers follow their own policy."""
    params, optimizer = federation.server_optimizer_at(round_index).step(
        model.params, aggregate.update, model.optimizer
    )
    buffers, counters = model.buffers, model.counters
    if federation.buffers == "average" and not federation.algorithm.own_buffers:
        shares = result.num_examples / result.num_examples.sum()
        buffers = shares.to(result.buffers) @ result.buffers
        counters = result.counters.amax(0)
    return GlobalModel(params, buffers, counters, optimizer, aggregate.state)


def initial_state(model: FlatModel) -> ServerState:
    """Return the model as it was initialized, before any round; see :func:`first_state` for a run's beginning."""
    return ServerState(0, model.params.detach().clone(), model.buffers.clone(), model.counters.clone())


def first_state(federation: Federation) -> ServerState:
    """Return the state before round 0, with whatever algorithm and clock begin with."""
    server = initial_state(federation.model)
    blocks, seed = federation.model.blocks, federation.seed
    server = federation.algorithm.initialize(server, blocks, sizes_of(federation.partition.client_indices), seed)
    clock = federation.clock
    return server if clock is None else clock.dispatch(federation.algorithm, server, federation.num_clients, seed)


def to_device(server: ServerState, device: torch.device) -> ServerState:
    """Move what a round computes with to a device; client states stay where they are until they are used."""

    def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def model(one: GlobalModel) -> GlobalModel:
        params, buffers, counters = (t.to(device) for t in (one.params, one.buffers, one.counters))
        return GlobalModel(params, buffers, counters, moved(one.optimizer), one.aggregator)

    first, *others = map(model, server.models)
    return replace(server.with_model(0, first), siblings=tuple(others), memory=moved(server.memory))
