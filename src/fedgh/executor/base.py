"""What every executor does around local training, whatever way it trains: tables in, tables out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.client.base import LocalTraining
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator, torch_generator, torch_seed
from fedgh.core.types import ClientState, CohortResult, ServerState
from fedgh.core.updates import UpdateMatrix
from fedgh.dataset.base import Dataset
from fedgh.dataset.stream import client_batches, client_rows, num_local_steps

ROW_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""Types of the update matrix by name; None is the model's own, float32 in every run that a config describes."""


class Executor(ABC):
    """Trains a cohort from a server state; executors take the same batches and differ by how sums are rounded.

    Most models keep that difference at about 1e-6. Batch normalization in float32 and FedDecorr amplify it until
    another executor acts like another seed: :mod:`fedgh.federation.rounding`.

    One LightningModule and one Trainer are reused for the whole run. A ``fit`` costs milliseconds before its first
    step, so a round pays for it once: its loader yields :meth:`work`. ``max_epochs`` moves on by one each time;
    otherwise a reused Trainer would silently skip every fit after the first. That every client took its steps is
    checked each round.

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
        client: The LightningModule that trains what :meth:`work` yields; a subclass sets it.
    """

    client: LocalTraining

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
        self.algorithm = algorithm
        self.dataset = dataset
        self.client_indices = client_indices
        self.seed = seed
        self.row_dtype = ROW_DTYPES[row_dtype] or model.params.dtype
        self._rows: Tensor | None = None
        self._label_counts: dict[int, Tensor] = {}

    def __call__(self, client_ids: Sequence[int], server: ServerState) -> CohortResult:
        """Train these clients from the global model.

        Args:
            client_ids: Who takes part, in any order.
            server: The global model, the round, and what the clients kept.

        Returns:
            Their updates and metadata, by ascending client id.

        Raises:
            TrainingError: If a client did not take the steps it should have taken.
        """
        result = self._empty_result(tuple(sorted(client_ids)))
        states = [self.state_of(k, server) for k in result.client_ids]
        self._fit(result, server, states)
        finished = {
            k: state
            for k, before, row, steps in zip(
                result.client_ids, states, result.updates.rows, result.local_steps.tolist(), strict=True
            )
            if (state := _own(self.algorithm.finish(before, row, steps), row))
        }
        return replace(result, client_states=finished, train_loss=result.train_loss.cpu().to(torch.float64))

    def open(self) -> None:  # noqa: B027 - most have nothing to start
        """Start what takes its time to start, worker processes for instance; the first cohort would do it otherwise.

        Raises:
            ConfigurationError: If it cannot be started.
        """

    def close(self) -> None:  # noqa: B027
        """End what :meth:`open` started; the next cohort would start it again."""

    @abstractmethod
    def work(self, client_ids: Sequence[int], states: Sequence[ClientState], round_index: int) -> Iterator[Any]:
        """Yield what :attr:`client` trains in one step each, until every row of the cohort has been trained.

        Args:
            client_ids: The cohort, in the order of the result's rows.
            states: What each client kept.
            round_index: Round t.
        """

    def batches(
        self, client_id: int, round_index: int, chunk_images: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a client's local batches in a round; its own address, so the same whoever asks and when."""
        augmented = self.dataset.augmentation is not None
        yield from client_batches(
            self.dataset,
            self.client_indices[client_id],
            self.algorithm.batch_size,
            self.algorithm.local_epochs,
            numpy_generator(self.seed, "shuffle", round_index, client_id),
            torch_generator(self.seed, "augment", round_index, client_id) if augmented else None,
            chunk_images=chunk_images,
        )

    def batch_rows(self, client_id: int, round_index: int) -> Iterator[Tensor]:
        """Yield which rows of the training split make up each of :meth:`batches`, ``(B,)`` int64."""
        generator = numpy_generator(self.seed, "shuffle", round_index, client_id)
        algorithm = self.algorithm
        return client_rows(self.client_indices[client_id], algorithm.batch_size, algorithm.local_epochs, generator)

    def num_steps(self, client_id: int) -> int:
        """Return the number of batches of :meth:`batches`."""
        algorithm = self.algorithm
        return num_local_steps(len(self.client_indices[client_id]), algorithm.batch_size, algorithm.local_epochs, None)

    def state_of(self, client_id: int, server: ServerState) -> ClientState:
        """Return what a client kept, or its first state."""
        if client_id in server.clients:
            return {name: tensor.to(self.model.device) for name, tensor in server.clients[client_id].items()}
        if client_id not in self._label_counts:
            strata = self.dataset.train_strata[self.client_indices[client_id].to(self.model.device)]
            self._label_counts[client_id] = torch.bincount(strata, minlength=self.dataset.num_classes)
        return self.algorithm.init_client_state(self._label_counts[client_id].clone())

    def _fit(self, result: CohortResult, server: ServerState, states: list[ClientState]) -> None:
        """Train the clients of ``result`` and fill its rows in place."""
        ids = result.client_ids
        seeds = [torch_seed(self.seed, "client", server.round_index, k) for k in ids]
        self.client.receive(server, result, states, seeds)
        self.trainer.fit_loop.max_epochs = self.trainer.current_epoch + 1
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            loader = _Loader(lambda: self.work(ids, states, server.round_index))
            self.trainer.fit(self.client, train_dataloaders=loader)
        expected = [self.num_steps(k) for k in ids]
        if result.local_steps.tolist() != expected:
            raise TrainingError(
                f"round {server.round_index}: clients {list(ids)} should have taken {expected} local steps, but took "
                f"{result.local_steps.tolist()}; remove settings that cut epochs short (limit_train_batches, "
                "max_steps, max_time) from the trainer"
            )

    def _empty_result(self, client_ids: tuple[int, ...]) -> CohortResult:
        """Return a result whose update rows reuse one preallocated matrix."""
        num_clients, model = len(client_ids), self.model
        if self._rows is None or len(self._rows) < num_clients:
            self._rows = torch.empty(num_clients, model.params.numel(), dtype=self.row_dtype, device=model.device)
        return CohortResult(
            client_ids=client_ids,
            updates=UpdateMatrix(self._rows[:num_clients], model.blocks),
            buffers=model.buffers.new_empty(num_clients, model.buffers.numel()),
            counters=model.counters.new_empty(num_clients, model.counters.numel()),
            num_examples=torch.tensor([len(self.client_indices[k]) for k in client_ids], dtype=torch.float64),
            local_steps=torch.zeros(num_clients, dtype=torch.int64),
            train_loss=torch.full((num_clients,), torch.nan, device=model.device),
        )


def _own(state: ClientState, row: Tensor) -> ClientState:
    """Copy what lies in the matrix of updates, which the next round overwrites."""
    shared = row.untyped_storage().data_ptr()
    return {name: t.clone() if t.untyped_storage().data_ptr() == shared else t for name, t in state.items()}


@dataclass(frozen=True, slots=True)
class _Loader:
    """What Lightning asks of a loader, and nothing more."""

    work: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.work()
