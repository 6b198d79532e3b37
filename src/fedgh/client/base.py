"""What every LightningModule that trains clients has: a model, an algorithm, and a cohort set before it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from fedgh.algorithm.base import Algorithm
from fedgh.core.flat import FlatModel
from fedgh.core.types import ClientState, CohortResult, ServerState


class LocalTraining(pl.LightningModule, ABC):
    """Local training; knows a model and an algorithm, and nothing of rounds or servers' rules.

    A single ``fit`` plays a whole cohort: what the loader yields and what a training step trains is the subclass's
    affair, so Lightning's cost is paid a few times a round and the loop inside is bare. Device, precision
    (``bf16-mixed``; ``16-mixed`` would need its loss scaled) and callbacks of the Trainer apply as usual.

    Args:
        model: The model that all clients share; held aside, so that Lightning neither moves nor saves it.
        algorithm: Gives the local loss and the local optimizer.
    """

    def __init__(self, model: FlatModel, algorithm: Algorithm) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.algorithm = algorithm

    def receive(self, server: ServerState, result: CohortResult, states: list[ClientState], seeds: list[int]) -> None:
        """Set the table for one cohort.

        Args:
            server: The global model that every client starts from.
            result: Where each client writes its row.
            states: State of each client, in row order.
            seeds: Seed of each client's own randomness (dropout), in row order.
        """
        self._server, self._result, self._states, self._seeds = server, result, states, seeds
        self.model.module.train()  # Lightning does not see the model, so it is ours to put in training mode

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Leave the work where it is: the data set already lives on the device."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the local optimizer over :meth:`trained`."""
        optimizer = self.algorithm.optimizer([self.trained()])
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
    def trained(self) -> nn.Parameter:
        """Return what the optimizer steps."""

    @abstractmethod
    def training_step(self, work: Any, index: int) -> None:
        """Train what the loader yields from the global model and write what was learned into the result."""
