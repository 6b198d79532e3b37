"""What travels between the parts of a federation: plain records, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedgh.core.updates import UpdateMatrix

ClientState = dict[str, Tensor]
"""What one client keeps between the rounds it takes part in, by name."""

Message = dict[str, Tensor]
"""What travels beside the model, by name; it costs as many bytes as its tensors hold."""


@dataclass(frozen=True)
class GlobalModel:
    """A model that a client can be sent: one of the server's, or an older version of it.

    Attributes:
        params: Trainable parameters, ``(params,)``.
        buffers: Floating buffers (running statistics), ``(buffers,)``.
        counters: Integer buffers, ``(counters,)`` int64.
        optimizer: State of the server optimizer for it.
        aggregator: State of the aggregator for it, for the rules that have one.
    """

    params: Tensor
    buffers: Tensor
    counters: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    aggregator: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """Everything the server carries from one round to the next; its first five tensors are global model 0.

    Attributes:
        round_index: Rounds finished so far; also the index t of the round to come.
        params: See :class:`GlobalModel`.
        buffers: See there.
        counters: See there.
        optimizer: See there.
        aggregator: See there.
        clients: State per client id, created when a client is first trained, by the algorithms that keep one.
        memory: What the algorithm keeps on the server: control variates, prototypes, masks, loss weights.
        siblings: Further global models, of methods that train several (IFCA).
        clock: Who is at work, since when and from which version, of asynchronous runs.
    """

    round_index: int
    params: Tensor
    buffers: Tensor
    counters: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    aggregator: dict[str, Tensor] = field(default_factory=dict)
    clients: Mapping[int, ClientState] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    siblings: tuple[GlobalModel, ...] = ()
    clock: dict[str, Tensor] = field(default_factory=dict)

    @property
    def models(self) -> tuple[GlobalModel, ...]:
        """All global models, model 0 first."""
        return (GlobalModel(self.params, self.buffers, self.counters, self.optimizer, self.aggregator), *self.siblings)

    def with_model(self, index: int, model: GlobalModel) -> ServerState:
        """Return this state with another global model at ``index``."""
        if index == 0:
            return replace(self, **vars(model))
        siblings = list(self.siblings)
        siblings[index - 1] = model
        return replace(self, siblings=tuple(siblings))


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of local training; most methods have one, of everything.

    Attributes:
        epochs: Passes over the client's data; None where ``steps`` says how long it is.
        steps: Local steps.
        columns: Which parameters move, ``(params,)`` bool; None for all. The others get neither step, momentum nor
            weight decay.
        lr: Local learning rate; None for the optimizer's own.
        fresh_momentum: Whether the optimizer forgets the phase before.
    """

    epochs: int | None = None
    steps: int | None = None
    columns: Tensor | None = None
    lr: float | None = None
    fresh_momentum: bool = True

    def length(self, steps_per_epoch: int) -> int:
        """Return its number of local steps."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What clients are sent beside the model, or instead of it.

    Attributes:
        everyone: The same for all of them; on a cluster it travels once a machine.
        own: Further tensors for a client, by its id.
        params: Sent instead of the parameters of global model 0, ``(params,)``: ``client.received`` has them, and
            updates are relative to them. None: the model's.
    """

    everyone: Message = field(default_factory=dict)
    own: Mapping[int, Message] = field(default_factory=dict)
    params: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client's local training starts.

    Attributes:
        params: ``(params,)``.
        buffers: ``(buffers,)``.
        state: What the local steps read and may change, by name. Every client has the same names and shapes, from the
            first round on, so that many can be stacked; a tensor that is one object for all clients is not copied.
        received: What the update is relative to, where a client chose among several models; None: what it was sent.
    """

    params: Tensor
    buffers: Tensor
    state: ClientState = field(default_factory=dict)
    received: GlobalModel | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a client's local training made; its tensors are the engine's own, so whoever keeps one clones it.

    Attributes:
        params: ``(params,)``.
        buffers: ``(buffers,)``.
        update: ``params - received``, the client's row of the update matrix. What stands here after
            ``Algorithm.report`` is what the server sees: write to it to compress, clip, mask or add noise.
        state: What the local steps left of ``Start.state``.
        local_steps: Optimizer steps taken.
    """

    params: Tensor
    buffers: Tensor
    update: Tensor
    state: ClientState
    local_steps: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a client keeps, and what it sends beside its update.

    Attributes:
        state: What it keeps until it takes part again.
        message: What it sends; every client the same names and shapes.
        update_bytes: Size of the update on the wire, where it is not that of the shared parameters (compression).
    """

    state: ClientState = field(default_factory=dict)
    message: Message = field(default_factory=dict)
    update_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What training one client gave, beside the row of updates that it filled.

    Attributes:
        client_id: Its id.
        buffers: Local floating buffers, ``(buffers,)``.
        counters: Local integer buffers, ``(counters,)``.
        train_loss: Mean loss over its steps, a scalar on the device.
        local_steps: Optimizer steps taken.
        report: What it keeps and sends.
    """

    client_id: int
    buffers: Tensor
    counters: Tensor
    train_loss: Tensor
    local_steps: int
    report: Report


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
        messages: What clients sent beside their update, by name, each ``(clients, *shape)``.
        staleness: Versions of the global model that came out since the one a client started from, ``(clients,)``
            int64; None in synchronous runs.
        bytes_down: What the server sent, together.
        bytes_up: What the clients sent, together.
        memory: What the algorithm kept on the server when the round began, as in :class:`ServerState`.
    """

    client_ids: tuple[int, ...]
    updates: UpdateMatrix
    buffers: Tensor
    counters: Tensor
    num_examples: Tensor
    local_steps: Tensor
    train_loss: Tensor
    client_states: Mapping[int, ClientState] = field(default_factory=dict)
    messages: Mapping[str, Tensor] = field(default_factory=dict)
    staleness: Tensor | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, keep: Tensor) -> CohortResult:
        """Return the rows where ``keep`` (clients,) is true, as copies; what was sent was sent all the same."""
        ids = tuple(k for k, kept in zip(self.client_ids, keep.tolist(), strict=True) if kept)
        return replace(
            self,
            client_ids=ids,
            updates=self.updates.select(keep),
            buffers=self.buffers[keep.to(self.buffers.device)],
            counters=self.counters[keep.to(self.counters.device)],
            num_examples=self.num_examples[keep],
            local_steps=self.local_steps[keep],
            train_loss=self.train_loss[keep],
            client_states={k: state for k, state in self.client_states.items() if k in ids},
            messages={name: tensor[keep.to(tensor.device)] for name, tensor in self.messages.items()},
            staleness=None if self.staleness is None else self.staleness[keep],
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
        params: Parameters of the global model before the round, ``(params,)``; None where only updates are known.
    """

    client_ids: tuple[int, ...]
    weights: Tensor
    losses: Tensor
    seed: int
    round_index: int
    params: Tensor | None = None

    def __len__(self) -> int:
        return len(self.client_ids)

    @staticmethod
    def of(weights: Tensor, seed: int = 0, round_index: int = 0) -> Cohort:
        """Return a cohort of clients 0, 1, ... with these weights; for notebooks and tests."""
        losses = torch.zeros(len(weights), dtype=torch.float64)
        return Cohort(tuple(range(len(weights))), weights.to(torch.float64), losses, seed, round_index)
