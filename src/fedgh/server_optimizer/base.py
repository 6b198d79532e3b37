"""The contract of a server optimizer, and what the adaptive ones share.

The direction is ``update = local - global`` throughout, so a server optimizer *adds*: plain FedAvg is
``params + update``. It sees parameters only; buffers such as BatchNorm statistics are averaged elsewhere. Its state is
a small mapping name -> tensor that goes into the checkpoint; the first round starts from an empty one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fedgh.core.errors import CheckpointError, ConfigurationError
from fedgh.core.updates import Block

State = dict[str, Tensor]


class ServerOptimizer(Protocol):
    """Turn the aggregated update of a round into the new global parameters."""

    def step(self, params: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one server step; the inputs are left as they were.

        Args:
            params: Global parameters w, ``(d,)``.
            update: Aggregated update D, local minus global, ``(d,)``.
            state: What the previous step returned; empty at the first.

        Returns:
            New parameters ``(d,)`` and new state.

        Raises:
            CheckpointError: If the state belongs to a model of another size.
        """


@runtime_checkable
class LayerWise(Protocol):
    """A server optimizer whose steps depend on which numbers are a layer."""

    def on(self, blocks: Sequence[Block]) -> ServerOptimizer:
        """Return it for a model of these layers, which cover all columns."""
        ...


@dataclass(frozen=True)
class Adaptive(ABC):
    """Adaptive server optimizers: momentum m and a second moment v, coordinate by coordinate.

    ``m <- beta1 m + (1 - beta1) D``, ``v <- second_moment(v, D^2)``, ``w <- w + lr m / (sqrt(v) + tau)``, from
    m = 0 and v = tau^2, without bias correction.

    Attributes:
        lr: Server learning rate, positive.
        beta1: Decay of the momentum m, in [0, 1).
        tau: Degree of adaptivity, positive; floor of the denominator.

    Reference:
        Reddi et al., ICLR 2021, Algorithm 2.
    """

    lr: float
    beta1: float
    tau: float

    def __post_init__(self) -> None:
        require_lr(self.lr)
        require_decay("beta1", self.beta1)
        if not self.tau > 0:
            raise ConfigurationError(f"server_optimizer.tau must be positive, got {self.tau}; try 0.001.")

    @abstractmethod
    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the new second moment from the old one and ``D^2``; all ``(d,)``, inputs untouched."""

    def step(self, params: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one server step; see :class:`ServerOptimizer`."""
        m, v = self.moments(update, state)
        return params + self.lr * m / (v.sqrt() + self.tau), {"m": m, "v": v}

    def moments(self, update: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return the new momentum and second moment, both ``(d,)``."""
        m = slot(state, "m", update, fill=0.0)
        v = slot(state, "v", update, fill=self.tau**2)
        return self.beta1 * m + (1 - self.beta1) * update, self.second_moment(v, update.square())


def slot(state: State, name: str, like: Tensor, fill: float) -> Tensor:
    """Return one tensor of the state, or a constant one where the run has just begun.

    Raises:
        CheckpointError: If its shape is not that of ``like``.
    """
    if name not in state:
        return torch.full_like(like, fill)
    if state[name].shape != like.shape:
        raise CheckpointError(
            f"server optimizer state {name!r} holds {state[name].numel():,} numbers, the model has {like.numel():,}; "
            "the checkpoint belongs to another model."
        )
    return state[name].to(like)


def require_lr(lr: float) -> None:
    """Check ``server_optimizer.lr``."""
    if not lr > 0:
        raise ConfigurationError(f"server_optimizer.lr must be positive, got {lr}; try 1.0 (sgd) or 0.1 (adaptive).")


def require_decay(name: str, value: float) -> None:
    """Check a decay such as ``server_optimizer.beta1``."""
    if not 0 <= value < 1:
        raise ConfigurationError(f"server_optimizer.{name} must be at least 0 and below 1, got {value}; try 0.9.")
