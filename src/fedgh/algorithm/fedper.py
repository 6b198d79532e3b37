"""FedPer: personal last layers on a shared body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class FedPer(PartialPersonalization):
    """Train body and head together; only the body is sent and averaged.

    With ``own_parameters: []`` it is FedAvg to the bit; with ``["*"]`` every client trains alone.

    Args:
        own_parameters: Names of the parameters that stay with the client, as shell patterns.

    Reference:
        Arivazhagan et al.: "Federated Learning with Personalization Layers", arXiv 1912.00818, algorithms 1 and 2.
    Departures:
        The paper counts base and personal layers; here they are named, ``head.*`` by default (K_P = 1). Running
        statistics are shared, as the paper says nothing of them.
    """

    own_parameters: tuple[str, ...]

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:  # noqa: ARG002
        """Return the configured names."""
        return self.own_parameters
