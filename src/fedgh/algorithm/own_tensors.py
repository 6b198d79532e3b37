"""The base of methods whose clients keep tensors of their own beside the model: a second model, a second head, weights.

What a client keeps never travels, and moves only when its client takes part. A client that has never taken part has the
initial tensors, which it is sent until it has some of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedgh.algorithm.base import Algorithm, Batch, require
from fedgh.core.forward import Forward
from fedgh.core.types import Broadcast, ClientState, GlobalModel, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


@dataclass(frozen=True, kw_only=True)
class OwnTensors(Algorithm, ABC):
    """Local training of clients that keep tensors of their own."""

    @abstractmethod
    def first(self, server: ServerState, blocks: Sequence[Block]) -> ClientState:
        """Return what a client has that has never taken part, by name, from the model as it was initialized."""

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:  # noqa: ARG002
        """Remember what newcomers have."""
        return replace(server, memory=self.first(server, blocks))

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        """Send it to those who have nothing of their own."""
        return Broadcast(own={k: server.memory for k in client_ids if k not in server.clients})

    def own(self, client: ClientView) -> ClientState:
        """Return what a client has of its own."""
        return client.state or dict(client.message)

    def report(self, client: ClientView, trained: Trained) -> Report:
        """Keep it as the local steps left it."""
        return Report({name: trained.state[name] for name in self.own(client)})


@dataclass(frozen=True, kw_only=True)
class OwnSteps(OwnTensors, ABC):
    """The same, of tensors that are stepped beside the model, plainly: no momentum, no weight decay.

    A model trained with momentum 0.9 moves about ten times as far at the same rate, so ``personal_lr`` of ten times the
    local one keeps pace with it: on digits 0.1 instead of 0.01 takes Ditto's personal accuracy from 0.93 to 0.96.

    Args:
        personal_lr: Their step size, > 0; null for that of the local optimizer, with its schedule.
    """

    personal_lr: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.personal_lr is None or self.personal_lr > 0
        require(given, "personal_lr", "positive, or null for algorithm.optimizer.lr", self.personal_lr)

    def prepare(self, client: ClientView) -> Start:
        """Start with what the client has, and with the rate ``lr`` of its steps."""
        params = client.received.params
        rate = params.new_tensor(client.lr if self.personal_lr is None else self.personal_lr)
        return Start(params, client.received.buffers, {**self.own(client), "lr": rate})


@dataclass(frozen=True, kw_only=True)
class SecondModel(OwnSteps, ABC):
    """Every client keeps a second model ``v``, with running statistics of its own (``buffers``).

    The first one never sees it: it is FedAvg's to the bit, as are aggregation and harmonization.
    """

    def first(self, server: ServerState, blocks: Sequence[Block]) -> ClientState:  # noqa: ARG002
        """Return the initial model."""
        return {"v": server.params, "buffers": server.buffers}

    def second_gradient(
        self, batch: Batch, forward: Forward, params: Tensor, global_params: Tensor, state: ClientState
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the local loss at other parameters, and the second model's statistics after it.

        It drops what the first model drops on the same batch.
        """
        second = forward.with_buffers(state["buffers"])
        with forward.same_draws():
            gradient, _ = second.gradients(lambda p: self.local_loss(batch, second, p, global_params, state), params)
        return gradient, second.statistics

    @abstractmethod
    def personal(self, client: ClientView) -> GlobalModel:
        """Return the model that this client would use now."""
