"""FedBABU: a shared body trained under a head at rest; heads are learnt when a client fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.algorithm.fine_tuning import fine_tuning
from fedgh.core.types import Phase
from fedgh.core.updates import Block, columns_of


@dataclass(frozen=True, kw_only=True)
class FedBABU(Algorithm):
    """Train and average the body alone; the head stays the common initial one, for everybody and to the bit.

    A client's own model is the global one fine-tuned on its examples, body and head, for 5 epochs or
    ``evaluation.fine_tune_epochs``, at the local rate of that round: look at ``fine_tuned/test/...``. The global model
    predicts with a random head. What is at rest gets neither step, momentum nor weight decay, and never travels. With
    ``fixed_parameters: []`` training is FedAvg to the bit.

    Args:
        fixed_parameters: Names of what stays at rest, as shell patterns; ``head.*``.

    Reference:
        Oh, Kim, Yun: "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022,
        algorithm 1, and the released code (rate 0.1, momentum 0.9, a tenth after a half and three quarters of the
        rounds).
    Departures:
        Averaged by n_k (the release: ``weights=uniform``). The release picks the round with the best test accuracy;
        here it is the last. No variant with examples on the server (FedBABU+).
    """

    fixed_parameters: tuple[str, ...]

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:
        """Return the body's epochs."""
        return (Phase(epochs=self.local_epochs, columns=self.shared(blocks)),)

    def shared(self, blocks: Sequence[Block]) -> Tensor | None:
        """Return which columns move, ``(params,)`` bool; None for all."""
        return ~columns_of(blocks, self.fixed_parameters) if self.fixed_parameters else None

    def fine_tuning(self, epochs: int | None) -> Algorithm:
        """Return training of all parameters."""
        return fine_tuning(self, epochs=5 if epochs is None else epochs)
