"""The base of methods whose clients keep a part of the model: parameters by name, and perhaps running statistics.

A client's own part is put back before it trains, is zero in its update, and never travels. A client that has never
taken part has the initial own part, which is what the global model holds there: nothing moves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Predictor, columns_of
from fedgh.core.types import ClientState, GlobalModel, Report, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class PartialPersonalization(Algorithm, ABC):
    """Local training of a model of which every client keeps its own part; ``own_buffers`` where that holds of them."""

    @abstractmethod
    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:
        """Return names of the parameters that stay with the client, as shell patterns such as ``head.*``."""

    def own(self, blocks: Sequence[Block]) -> Tensor:
        """Return which columns stay with the client, ``(params,)`` bool."""
        return columns(tuple(blocks), tuple(self.own_names(blocks)))

    def shared(self, blocks: Sequence[Block]) -> Tensor:
        """Return which columns travel, ``(params,)`` bool."""
        return ~self.own(blocks)

    def with_own_part(self, client: ClientView) -> GlobalModel:
        """Return the model that a client was sent, with its own part put in."""
        received = client.received
        params, buffers = received.params, received.buffers
        if client.state:
            own = self.own(client.model.blocks).to(params.device)
            params = params.masked_scatter(own, client.state["own"])
            buffers = client.state["buffers"] if self.own_buffers else buffers
        return GlobalModel(params, buffers, received.counters)

    def prepare(self, client: ClientView) -> Start:
        """Start from the received model with the client's own part in it."""
        model = self.with_own_part(client)
        return Start(model.params, model.buffers)

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep the own part, and send nothing of it."""
        return Report(self.kept(client, trained))

    def kept(self, client: ClientView, trained: Trained) -> ClientState:
        """Return the client's own part after training, which is taken out of its update."""
        own = self.own(client.model.blocks).to(trained.params.device)
        trained.update.masked_fill_(own, 0.0)
        state = {"own": trained.params[own]}
        return {**state, "buffers": trained.buffers.clone()} if self.own_buffers else state

    def personal(self, client: ClientView) -> GlobalModel | Predictor:
        """Return the current shared part with the client's own."""
        return self.with_own_part(client)


@lru_cache(maxsize=32)
def columns(blocks: tuple[Block, ...], names: tuple[str, ...], device: torch.device | str = "cpu") -> Tensor:
    """Return :func:`columns_of`, none where there are no names: one tensor however often it is asked for."""
    mask = columns_of(blocks, names) if names else torch.zeros(blocks[-1].stop, dtype=torch.bool)
    return mask.to(device)
