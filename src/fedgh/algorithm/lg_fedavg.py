"""LG-FedAvg: personal lower layers below a shared head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedgh.algorithm.base import columns_of
from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class LGFedAvg(PartialPersonalization):
    """Train all layers together; only the upper ones are sent and averaged, the mirror image of FedPer.

    Running statistics stay with the client, as the layers do that they belong to. What is shared is named, never
    counted. With ``shared_parameters: ["*"]``, on a network without running statistics, it is FedAvg to the bit.

    Args:
        shared_parameters: Names of the parameters that travel, as shell patterns; ``head.*``. The authors keep the last
            3 of 5 layers common on MNIST, 2 of 5 on CIFAR-10.

    Reference:
        Liang et al.: "Think Locally, Act Globally: Federated Learning with Local and Global Representations", arXiv
        2001.01523, algorithm 1, and the released code.
    Departures:
        Averaged by n_k (the release: uniformly). The release goes on from a model trained by FedAvg; here clients start
        from the initial one, and heads meet features that have nothing in common at first. Its CIFAR-10 runs share the
        convolutions, as that network lists its layers in another order. No ensemble of all local models for new
        clients: they have the initial lower layers.
    """

    own_buffers: ClassVar[bool] = True

    shared_parameters: tuple[str, ...]

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:
        """Return the names of all other parameters."""
        shared = columns_of(blocks, self.shared_parameters)
        return [block.name for block in blocks if not shared[block.start]]
