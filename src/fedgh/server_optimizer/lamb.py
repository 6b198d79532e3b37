"""LAMB: Adam's direction, layer by layer as long as the layer itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.server_optimizer.base import Adaptive, ServerOptimizer, State, require_decay


@dataclass(frozen=True)
class Lamb(Adaptive):
    """Move every layer by ``lr ||w|| u / ||u||``, with ``u = m / (sqrt(v) + tau) - weight_decay w``.

    m and v are Adam's, see :class:`Adaptive`. A layer that is zero, or that has nothing to do, moves by ``lr u``. A
    layer is a named parameter: a weight matrix, a bias.

    Attributes:
        lr: Server learning rate, positive: by which part of its length a layer moves.
        beta1: Decay of the momentum m, in [0, 1).
        tau: Degree of adaptivity, positive; v starts at tau^2.
        beta2: Decay of the second moment v, in [0, 1).
        weight_decay: lambda, 0 or more, decoupled from m and v.

    Reference:
        You et al.: "Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes", ICLR 2020, algorithm 2.
        On the server: Azam et al.: "Federated Learning with Differential Privacy for End-to-End Speech Recognition".
    Departures:
        No bias correction of m and v, which the trust ratio takes back but for tau; no bounds on the norm of a layer.
    """

    beta2: float
    weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay("beta2", self.beta2)
        if not self.weight_decay >= 0:
            raise ConfigurationError(
                f"server_optimizer.weight_decay must be 0 or more, got {self.weight_decay}; try 0.0."
            )

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return ``v <- beta2 v + (1 - beta2) D^2``, as Adam does."""
        return self.beta2 * v + (1 - self.beta2) * square

    def step(
        self, params: Tensor, update: Tensor, state: State, blocks: Sequence[Block] | None = None
    ) -> tuple[Tensor, State]:
        """Take one server step; see :class:`ServerOptimizer`. Without ``blocks`` the model is one layer."""
        m, v = self.moments(update, state)
        u = m / (v.sqrt() + self.tau) - self.weight_decay * params
        lengths = [len(params)] if blocks is None else [block.stop - block.start for block in blocks]
        layers = zip(torch.split(params, lengths), torch.split(u, lengths), strict=True)
        parts = [self._trust(w, part) * part for w, part in layers]
        return params + self.lr * torch.cat(parts), {"m": m, "v": v}

    def on(self, blocks: Sequence[Block]) -> ServerOptimizer:
        """See :class:`~fedgh.server_optimizer.base.LayerWise`."""
        bound: Any = SimpleNamespace(step=partial(self.step, blocks=blocks))
        return bound  # type: ignore[no-any-return]

    @staticmethod
    def _trust(layer: Tensor, u: Tensor) -> Tensor:
        """Return ``||w|| / ||u||``, or 1 where one of them is zero."""
        ratio = layer.norm() / u.norm()
        return torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
