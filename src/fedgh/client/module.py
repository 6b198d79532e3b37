"""The LightningModules of clients: device, precision and callbacks of the Trainer around local training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from fedgh.algorithm.base import Algorithm
from fedgh.client.local import LocalWork, train_client
from fedgh.client.vectorized import GroupWork, train_group
from fedgh.core.flat import FlatModel
from fedgh.core.types import ClientResult


class LocalTraining(pl.LightningModule, ABC):
    """Plays clients; knows a model and an algorithm, and nothing of rounds or servers' rules.

    A single ``fit`` plays a whole cohort: a training step trains what the loader yields, one client or many, so
    Lightning's cost is paid a few times a round and the loop inside is bare. Device, precision (``bf16-mixed``;
    ``16-mixed`` would need its loss scaled) and callbacks of the Trainer apply as usual.

    Args:
        model: The model that all clients share; held aside, so that Lightning neither moves nor saves it.
        algorithm: What a client computes.

    Attributes:
        results: What the training steps of this fit have made; the executor takes them.
    """

    def __init__(self, model: FlatModel, algorithm: Algorithm) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.algorithm = algorithm
        self.results: list[ClientResult] = []

    def on_train_start(self) -> None:
        """Put the model in training mode: Lightning does not see it."""
        self.model.module.train()
        self.results = []

    def on_train_end(self) -> None:
        """Forget what the optimizer remembers, which Lightning would copy to the host."""
        self.optimizers(use_pl_optimizer=False).state.clear()  # type: ignore[union-attr]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Leave the work where it is: the data set already lives on the device."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the local optimizer, once a fit."""
        optimizer = self.algorithm.optimizer([self.stepped()])
        self._first_state = dict(optimizer.state)  # empty but for those that fill it where they are built
        return optimizer

    def fresh_optimizer(self) -> Any:
        """Return the local optimizer, as good as new: momentum does not survive a round."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.state.clear()
        for parameter, state in self._first_state.items():
            optimizer.state[parameter] = copy.deepcopy(state)
        return optimizer

    @abstractmethod
    def stepped(self) -> nn.Parameter:
        """Return what the optimizer steps."""


class Client(LocalTraining):
    """Trains one client after the other: a training step plays a few of them, so that small ones do not pay for it.

    The batches of a few are drawn before the first of them trains: one kind of work at a time keeps the caches warm, a
    tenth of a round of small clients. A client that comes alone may be large, and draws as it goes.
    """

    def stepped(self) -> nn.Parameter:
        """Return the flat parameters."""
        return self.model.params

    def training_step(self, work: Sequence[LocalWork], index: int) -> None:  # noqa: ARG002
        """Train these clients."""
        drawn = work if len(work) == 1 else [replace(one, batches=list(one.batches)) for one in work]
        for one in drawn:
            self.results.append(train_client(self.model, self.algorithm, self.fresh_optimizer(), one))


class ClientGroup(LocalTraining):
    """Trains one group of clients per training step, all of them to the end.

    Args:
        model: See :class:`LocalTraining`.
        algorithm: See there; vectorizable.
        width: Clients in a group, at most.
    """

    def __init__(self, model: FlatModel, algorithm: Algorithm, width: int) -> None:
        super().__init__(model, algorithm)
        self.width = width
        self._matrix = model.params.detach().new_empty(0, model.params.numel())

    def reserve(self, num_clients: int) -> None:
        """Have memory for the parameters of a cohort's largest group; it is kept from round to round."""
        size = min(self.width, num_clients)
        if len(self._matrix) < size:
            self._matrix = self._matrix.new_empty(size, self._matrix.shape[1])

    def stepped(self) -> nn.Parameter:
        """Return the stacked parameters of a group."""
        return nn.Parameter(self._matrix)

    def training_step(self, work: GroupWork, index: int) -> None:  # noqa: ARG002
        """Train a group."""
        self.results += train_group(self.model, self.algorithm, self.fresh_optimizer(), self._matrix, work)
