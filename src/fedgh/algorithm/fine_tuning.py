"""Models that a client makes for itself when it is evaluated, by training on its own examples; nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import SGD

from fedgh.algorithm.base import Algorithm
from fedgh.core.types import Broadcast, GlobalModel, Phase, Report, ServerState, Start, Trained
from fedgh.core.updates import Block

if TYPE_CHECKING:
    from fedgh.client.view import ClientView


def fine_tuning(
    algorithm: Algorithm,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    plain_lr: float | None = None,
) -> Algorithm:
    """Return plain training, on the task's loss, of the models that the clients of an algorithm would use.

    Args:
        algorithm: Whose ``personal`` models are fine-tuned; the global one where it has none, and where clients
            predict by more than a model.
        epochs: Passes over a client's examples; None where ``steps`` says how long it is.
        steps: Local steps.
        plain_lr: Step size of plain SGD; None for the algorithm's own optimizer.
    """
    return _FineTuning(
        method=algorithm,
        phase=Phase(epochs=epochs, steps=steps, lr=plain_lr),
        optimizer=algorithm.optimizer if plain_lr is None else partial(SGD, lr=plain_lr),
        local_epochs=algorithm.local_epochs,
        batch_size=algorithm.batch_size,
    )


def say_the_model(model: Tensor, trained: Trained) -> None:
    """Let a client's update be the fine-tuned model itself, which is how fine-tuning answers."""
    trained.update.copy_(model)


@dataclass(frozen=True, kw_only=True)
class _FineTuning(Algorithm):
    """Train what a client of ``method`` would use."""

    method: Algorithm
    phase: Phase

    def initialize(self, server: ServerState, blocks: Sequence[Block], num_examples: Tensor, seed: int) -> ServerState:
        return self.method.initialize(server, blocks, num_examples, seed)

    def broadcast(self, server: ServerState, client_ids: Sequence[int]) -> Broadcast:
        return self.method.broadcast(server, client_ids)

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:  # noqa: ARG002
        return (self.phase,)

    def prepare(self, client: ClientView) -> Start:
        personal = self.method.personal(client)
        model = personal if isinstance(personal, GlobalModel) else client.models[0]
        return Start(model.params, model.buffers)

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        say_the_model(trained.params, trained)
        return Report()
