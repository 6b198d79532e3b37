"""FedRep: personal heads on a shared body, trained one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedgh.algorithm.base import require
from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.types import Phase
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class FedRep(PartialPersonalization):
    """Train first the head with the body at rest, then the body with the head at rest; only the body is averaged.

    The head gets the first ``local_epochs - body_epochs`` epochs. What is at rest gets neither step, momentum nor
    weight decay, and momentum starts anew with the body. With ``own_parameters: []`` and ``body_epochs`` equal to
    ``local_epochs`` it is FedAvg to the bit; with ``["*"]`` and ``body_epochs: 0`` every client trains alone.

    Args:
        own_parameters: Names of the parameters that stay with the client, the head, as shell patterns.
        body_epochs: Last epochs of ``local_epochs``, which train the body; 1 of 5 by the authors' flags, 1 of 11 on
            CIFAR-10.
        head_lr: Rate of the head; null for the optimizer's, as the authors do (0.01, momentum 0.5, decay 1e-4).
        body_lr: Rate of the body; likewise.

    Reference:
        Collins, Hassani, Mokhtari, Shakkottai: "Exploiting Shared Representations for Personalized Federated
        Learning", ICML 2021, algorithm 1.
    Departures:
        Bodies are averaged by n_k (the authors: uniformly on CIFAR and MNIST). A client that has never taken part has
        the initial head; in the authors' code the mean of the last participants'. No last round of heads alone. Running
        statistics of the body move in both phases; the authors' networks have none.
    """

    own_parameters: tuple[str, ...]
    body_epochs: int
    head_lr: float | None
    body_lr: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = isinstance(self.body_epochs, int) and 0 <= self.body_epochs <= self.local_epochs
        require(fits, "body_epochs", f"an integer from 0 to local_epochs, {self.local_epochs}", self.body_epochs)
        for name in ("head_lr", "body_lr"):
            lr = getattr(self, name)
            require(lr is None or lr > 0, name, "positive, or null for algorithm.optimizer.lr", lr)

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:  # noqa: ARG002
        """Return the patterns."""
        return self.own_parameters

    def phases(self, blocks: Sequence[Block]) -> tuple[Phase, ...]:
        """Return the head's epochs and the body's; an empty phase is left out."""
        head = self.own(blocks)
        phases = (
            Phase(self.local_epochs - self.body_epochs, columns=head, lr=self.head_lr),
            Phase(self.body_epochs, columns=~head, lr=self.body_lr),
        )
        return tuple(phase for phase in phases if phase.epochs)
