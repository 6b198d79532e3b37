"""What every executor does around local training, whatever way it trains: tables in, tables out."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch
from fedgh.algorithm.contract import check_unwritten, note_writes
from fedgh.client.module import LocalTraining
from fedgh.client.view import ClientView
from fedgh.compressor.base import Compressor
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.flat import FlatModel
from fedgh.core.lr_schedule import Constant, LRSchedule
from fedgh.core.seeding import numpy_generator, torch_generator, torch_seed
from fedgh.core.types import ClientResult, ClientState, CohortResult, GlobalModel, Message, Phase, ServerState
from fedgh.core.updates import RowMemory, UpdateMatrix
from fedgh.dataset.base import Dataset, input_range
from fedgh.dataset.stream import batch_sizes, client_batches, client_rows
from fedgh.executor.channel import compressed, privatized
from fedgh.executor.fit import fit
from fedgh.executor.gather import check_reports, gather
from fedgh.privacy.gaussian import Gaussian

ROW_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""Types of the update matrix by name; None is the model's own, float32 in every run that a config describes."""


class LocalPlan(NamedTuple):
    """How a client trains.

    Attributes:
        phases: The parts of its training, with their numbers of steps.
        num_steps: Steps in all.
    """

    phases: tuple[tuple[Phase, int], ...]
    num_steps: int


class Executor(ABC):
    """Trains a cohort from a server state; executors take the same batches and differ by how sums are rounded.

    Most models keep that difference at about 1e-6. Batch normalization in float32 and FedDecorr amplify it until
    another executor acts like another seed: :mod:`fedgh.federation.rounding`.

    Args:
        trainer: The Trainer to reuse.
        model: The model that clients train, already on its device.
        algorithm: What a client computes.
        dataset: Training data, on the model's device.
        client_indices: Rows of the training split per client id, ``(n_k,)`` int64 each.
        seed: Seed of the experiment.
        row_dtype: Of the update matrix: ``float32``, or ``bfloat16``, half the memory. Clients train in their own
            precision either way; a bfloat16 row is their update rounded to 8 bits, and products and sums over rows are
            formed in float32. Runs stored before the setting existed go on with its default.

    Attributes:
        phases: The parts of local training.
        shared: Which parameters travel, ``(params,)`` bool; None for all.
        lr_schedule: What the local learning rate is multiplied with, by round.
        purpose: What is trained for, when that is no round of training: other batches and other draws.
        compressor: What becomes of updates on their way; None: they arrive as they are.
        privacy: How they are clipped and made noisy before that; None: not at all.
        may_end_the_process: Whether something outside may end this process without an exception.
    """

    may_end_the_process = False
    lr_schedule: LRSchedule = Constant()
    purpose = ""
    compressor: Compressor | None = None
    privacy: Gaussian | None = None

    def __init__(
        self,
        trainer: pl.Trainer,
        model: FlatModel,
        algorithm: Algorithm,
        dataset: Dataset,
        client_indices: Sequence[Tensor],
        seed: int,
        row_dtype: str = "float32",
    ) -> None:
        if row_dtype not in ROW_DTYPES:
            raise ConfigurationError(
                f"executor.row_dtype must be one of {', '.join(ROW_DTYPES)}, got {row_dtype!r}; bfloat16 halves the "
                "memory of the update matrix and rounds every update to 8 bits"
            )
        self.trainer = trainer
        self.model = model
        self.dataset = dataset
        self.task = dataset.task
        self.client_indices = client_indices
        self.seed = seed
        self.row_dtype = ROW_DTYPES[row_dtype] or model.params.dtype
        self._label_counts: dict[int, Tensor] = {}
        self.take(algorithm)

    def take(self, algorithm: Algorithm) -> None:
        """Get ready to train by an algorithm; whatever depends on it is set here."""
        model = self.model
        self.algorithm = algorithm
        self.phases = tuple(_on(phase, model.device) for phase in algorithm.phases(model.blocks))
        self.shared = algorithm.shared(model.blocks)
        self._lr: float = algorithm.optimizer_settings().get("lr", math.nan)
        self._memory = RowMemory(model.params.numel(), self.row_dtype, model.device)
        self._plans: dict[int, LocalPlan] = {}

    def playing(self, algorithm: Algorithm, purpose: str) -> Self:
        """Return this executor for another algorithm: same model, data and workers, rows in the model's own type.

        Args:
            algorithm: What clients compute.
            purpose: Part of the address of all that is drawn, so that it is not what a round of training draws.
        """
        other = copy.copy(self)
        other.purpose, other.row_dtype = purpose, self.model.params.dtype
        other.compressor = other.privacy = None  # nothing is sent
        other.take(algorithm)
        return other

    def __call__(
        self, client_ids: Sequence[int], server: ServerState, versions: Mapping[int, GlobalModel] | None = None
    ) -> CohortResult:
        """Train these clients from the global model.

        Args:
            client_ids: Who takes part, in any order.
            server: The global models, the round, and what the clients kept.
            versions: Older versions of the global model, for the clients that were sent one.

        Returns:
            Their updates and metadata, by ascending client id.

        Raises:
            TrainingError: If a client did not take the steps it should have taken.
            ConfigurationError: If the algorithm breaks its contract, see :mod:`fedgh.algorithm.contract`.
        """
        clients = list(self.views(sorted(client_ids), server, versions))
        updates = UpdateMatrix(self.rows(len(clients)), self.model.blocks)
        watched = self.algorithm.own_client_hooks
        held = note_writes(_held(clients)) if watched else []
        results = self.in_order(clients, self.train(clients, updates.rows))
        if self.privacy is not None:
            privatized(self.privacy, clients, updates.rows, self.model.blocks, self.shared, self.seed)
        if self.compressor is not None and not self.compressor.identity:
            how = self.shared, self.seed
            results = [
                compressed(self.compressor, client, result, row, *how)
                for client, result, row in zip(clients, results, updates.rows, strict=True)
            ]
        if watched:
            check_unwritten(self.algorithm, held)
            check_reports(self.algorithm, clients, results)
        travel = self.shared, not self.algorithm.own_buffers, self.algorithm.one_model
        return gather(clients, results, updates, *travel)

    def in_order(self, clients: Sequence[ClientView], results: Sequence[ClientResult]) -> list[ClientResult]:
        """Return the results in the order of the clients, each of whom must have taken all its steps.

        Raises:
            TrainingError: If a client did not.
        """
        found = {result.client_id: result for result in results}
        ids = [client.client_id for client in clients]
        taken = [found[k].local_steps if k in found else 0 for k in ids]
        expected = [self.num_steps(k) for k in ids]
        if taken != expected:
            raise TrainingError(
                f"round {clients[0].round_index + 1}: clients {ids} should have taken {expected} local steps, but took "
                f"{taken}; remove settings that cut epochs short (limit_train_batches, max_steps, max_time) from the "
                "trainer"
            )
        return [found[k] for k in ids]

    @abstractmethod
    def train(self, clients: Sequence[ClientView], rows: Tensor) -> list[ClientResult]:
        """Train these clients, in any order; the update of the j-th goes to ``rows[j]``."""

    def views(
        self, client_ids: Sequence[int], server: ServerState, versions: Mapping[int, GlobalModel] | None = None
    ) -> Iterator[ClientView]:
        """Yield the clients as a method sees them when the server has sent them what they get.

        One by one: the states of all clients may be more than fits into memory.
        """
        sent = self.algorithm.broadcast(server, client_ids)
        models = (server if sent.params is None else replace(server, params=sent.params)).models
        everyone = self._here(sent.everyone)
        for k in client_ids:
            message = {**everyone, **self._here(sent.own.get(k, {}))}
            state = server.clients.get(k, {})
            yield self.view(k, server.round_index, message, state, models, (versions or {}).get(k))

    def view(
        self,
        client_id: int,
        round_index: int,
        message: Message,
        state: ClientState,
        models: tuple[GlobalModel, ...],
        version: GlobalModel | None = None,
    ) -> ClientView:
        """Return a client as a method sees it; see :class:`~fedgh.client.view.ClientView`."""
        received = models[0] if version is None else version
        return ClientView(client_id, round_index, received, self._here(message), self._here(state), models, self)

    def ask(self, server: ServerState, question: Callable[[ClientView], Message]) -> Iterator[tuple[int, Message]]:
        """Put a question to every client, with the current global model and without training; yield the answers."""
        for client in self.views(range(len(self.client_indices)), server):
            yield client.client_id, question(client)

    def open(self) -> None:  # noqa: B027 - most have nothing to start
        """Start what takes its time to start, worker processes for instance; the first cohort would do it otherwise.

        Raises:
            ConfigurationError: If it cannot be started.
        """

    def close(self) -> None:  # noqa: B027
        """End what :meth:`open` started; the next cohort would start it again."""

    def batches(self, client_id: int, round_index: int, chunk_size: int | None = None) -> Iterator[Batch]:
        """Yield a client's local batches in a round; its own address, so the same whoever asks and when."""
        augmented = self.dataset.augmentation is not None
        return client_batches(
            self.dataset,
            self.client_indices[client_id],
            self.algorithm.batch_size,
            self.num_steps(client_id),
            numpy_generator(self.seed, self.purpose + "shuffle", round_index, client_id),
            torch_generator(self.seed, self.purpose + "augment", round_index, client_id) if augmented else None,
            chunk_size,
        )

    def batch_rows(self, client_id: int, round_index: int) -> Iterator[Tensor]:
        """Yield which rows of the training split make up each of :meth:`batches`, ``(B,)`` int64."""
        generator = numpy_generator(self.seed, self.purpose + "shuffle", round_index, client_id)
        batch_size, num_steps = self.algorithm.batch_size, self.num_steps(client_id)
        return client_rows(self.client_indices[client_id], batch_size, num_steps, generator)

    def client_seed(self, client: ClientView) -> int:
        """Return the seed of what a client draws while it trains."""
        return torch_seed(self.seed, self.purpose + "client", client.round_index, client.client_id)

    def plan(self, client_id: int) -> LocalPlan:
        """Return how a client trains, in every round."""
        if client_id not in self._plans:
            epoch = len(batch_sizes(self.num_examples(client_id), self.algorithm.batch_size))
            phases = tuple((phase, phase.length(epoch)) for phase in self.phases)
            self._plans[client_id] = LocalPlan(phases, sum(steps for _, steps in phases))
        return self._plans[client_id]

    # ---- what a ClientView asks; see fedgh.client.view.ClientData ----

    def num_examples(self, client_id: int) -> int:
        """Return n_k."""
        return len(self.client_indices[client_id])

    def num_steps(self, client_id: int) -> int:
        """Return tau_k, the number of batches of :meth:`batches`."""
        return self.plan(client_id).num_steps

    def lr(self, round_index: int) -> float:
        """Return the local learning rate of a round."""
        return self._lr * self.lr_schedule(round_index)

    def label_counts(self, client_id: int) -> Tensor:
        """Return a client's examples per class, ``(classes,)``."""
        if client_id not in self._label_counts:
            strata = self.dataset.train_strata[self.client_indices[client_id].to(self.model.device)]
            self._label_counts[client_id] = torch.bincount(strata, minlength=self.dataset.num_classes)
        return self._label_counts[client_id]

    def input_range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest number of an input as the model sees it."""
        return input_range(self.dataset)

    def examples(self, client_id: int, batch_size: int = 500) -> Iterator[Batch]:
        """Yield a client's training examples once, in order, normalized and unaugmented."""
        for rows in torch.split(self.client_indices[client_id], batch_size):
            rows = rows.to(self.model.device)
            yield self.dataset.normalize(self.dataset.train_inputs[rows]), self.dataset.train_targets[rows]

    def _here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    def rows(self, num_clients: int) -> Tensor:
        """Return memory for a matrix of updates, used again in the next round unless somebody keeps this one."""
        return self._memory.take(num_clients)


class FittingExecutor(Executor):
    """Trains in one ``fit`` of one reused Trainer a round.

    A fit costs milliseconds before its first step, so a round pays for it once: its loader yields :meth:`work`.

    Attributes:
        module: The LightningModule that trains what :meth:`work` yields; a subclass sets it.
    """

    module: LocalTraining

    @abstractmethod
    def work(self, clients: Sequence[ClientView], rows: Tensor) -> Iterator[Any]:
        """Yield what :attr:`module` trains in one step each; whatever takes memory is drawn when it is trained."""

    def train(self, clients: Sequence[ClientView], rows: Tensor) -> list[ClientResult]:
        """See :meth:`Executor.train`."""
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            fit(self.trainer, self.module, self.work(clients, rows))
        results, self.module.results = self.module.results, []
        return results


def _held(clients: Sequence[ClientView]) -> Iterator[tuple[str, Tensor]]:
    """Yield what clients only read, with its name: the server, or another client, holds it, too."""
    for client in clients:
        yield "client.received.params", client.received.params
        yield "client.received.buffers", client.received.buffers
        for name, tensor in client.message.items():
            yield f"client.message[{name!r}]", tensor
        for name, tensor in client.state.items():
            yield f"client.state[{name!r}]", tensor


def _on(phase: Phase, device: torch.device) -> Phase:
    columns = None if phase.columns is None else phase.columns.to(device)
    return Phase(phase.epochs, phase.steps, columns, phase.lr, phase.fresh_momentum)
