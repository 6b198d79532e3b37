"""One client as a method sees it: what it received and kept, and its own data. Nothing is computed unless asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator
from fedgh.core.types import ClientState, GlobalModel, Message
from fedgh.task.base import Task


class ClientData(Protocol):
    """Who answers for the clients' data: the executor."""

    model: FlatModel
    task: Task
    seed: int

    def num_examples(self, client_id: int) -> int:
        """Return n_k."""
        ...

    def num_steps(self, client_id: int) -> int:
        """Return tau_k."""
        ...

    def label_counts(self, client_id: int) -> Tensor:
        """Return the client's examples per class, ``(classes,)``."""
        ...

    def input_range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest number of an input as the model sees it."""
        ...

    def examples(self, client_id: int, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the client's examples once."""
        ...

    def lr(self, round_index: int) -> float:
        """Return the local learning rate of a round."""
        ...


@dataclass(frozen=True)
class ClientView:
    """A client between two messages; every tensor is on the model's device.

    Attributes:
        client_id: Its id.
        round_index: Round t.
        received: The model it was sent.
        message: What it was sent beside that.
        state: What it kept; empty until it has taken part.
        models: All global models.
    """

    client_id: int
    round_index: int
    received: GlobalModel
    message: Message
    state: ClientState
    models: tuple[GlobalModel, ...]
    _data: ClientData = field(repr=False)

    @property
    def model(self) -> FlatModel:
        """The model that all clients share; use :meth:`run`, which leaves it as it was."""
        return self._data.model

    @property
    def task(self) -> Task:
        """What outputs and targets mean."""
        return self._data.task

    @property
    def num_examples(self) -> int:
        """n_k."""
        return self._data.num_examples(self.client_id)

    @property
    def num_steps(self) -> int:
        """Local steps that it takes in a round, tau_k."""
        return self._data.num_steps(self.client_id)

    @property
    def lr(self) -> float:
        """Local learning rate of this round, where a phase has none of its own."""
        return self._data.lr(self.round_index)

    @property
    def label_counts(self) -> Tensor:
        """Its examples per class, ``(classes,)`` int64; not to be written to."""
        return self._data.label_counts(self.client_id)

    @property
    def input_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest number of an input as the model sees it, of images ``(channels, 1, 1)`` each."""
        return self._data.input_range()

    def examples(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield its training examples once, in order, normalized and unaugmented: inputs and targets."""
        return self._data.examples(self.client_id, batch_size)

    @torch.no_grad()
    def run(self, params: Tensor, inputs: Tensor, buffers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (outputs, features) in evaluation mode.

        Args:
            params: ``(params,)``.
            inputs: ``(B, *shape)``.
            buffers: ``(buffers,)``; None for those that it received.
        """
        with self.model.evaluation_mode():
            statistics = self.received.buffers if buffers is None else buffers
            return self.model.forward(params, inputs, self.model.unflatten_buffers(statistics))

    def gradient(self, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradient ``(params,)`` and value of the task's loss in evaluation mode, with received statistics.

        Args:
            params: ``(params,)``.
            inputs: ``(B, *shape)``.
            targets: ``(B,)`` or ``(B, tasks)``.
        """
        leaf = params.detach().clone().requires_grad_()
        with torch.enable_grad(), self.model.evaluation_mode():
            outputs, _ = self.model.forward(leaf, inputs, self.model.unflatten_buffers(self.received.buffers))
            loss = self.task.loss(outputs, targets)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, loss.detach()

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a generator of this client's own in this round, the same whenever it is asked for."""
        return numpy_generator(self._data.seed, purpose, self.round_index, self.client_id)

    def loss(self, params: Tensor, buffers: Tensor | None = None) -> float:
        """Return the mean loss on its training examples in evaluation mode."""
        total, count = 0.0, 0
        for inputs, targets in self.examples():
            outputs, _ = self.run(params, inputs, buffers)
            total += float(self.task.loss(outputs, targets)) * len(targets)
            count += len(targets)
        return total / count
