"""FedBN: personal batch normalization in a shared network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedgh.algorithm.base import require
from fedgh.algorithm.partial import PartialPersonalization
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block

BATCH_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"}
OTHER_NORMS = {
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LocalResponseNorm",
}


@dataclass(frozen=True, kw_only=True)
class FedBN(PartialPersonalization):
    """Train as FedAvg does; weights, biases and running statistics of batch normalization stay with the client.

    They are found by the class of their layer, not by name. The global model keeps the initial ones and is of no use by
    itself: look at the personal models. With ``norm: any`` on a network without normalization it is FedAvg to the bit.

    Args:
        norm: ``batch`` as published, which refuses a network without batch normalization; ``any`` keeps every
            normalization layer with the client, a variant.

    Reference:
        Li, Jiang, Zhang, Kamp, Dou: "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
        ICLR 2021, algorithm 1.
    Departures:
        Averaged by n_k over the participants; the authors average uniformly over all (five) clients. A client that has
        never taken part has the initial normalization.
    """

    own_buffers: ClassVar[bool] = True

    norm: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.norm in ("batch", "any"), "norm", "batch or any", self.norm)

    def own_names(self, blocks: Sequence[Block]) -> Iterable[str]:
        """Return the parameters of normalization layers.

        Raises:
            ConfigurationError: If batch normalization is asked for, and there is none.
        """
        layers = BATCH_NORMS if self.norm == "batch" else BATCH_NORMS | OTHER_NORMS
        names = [block.name for block in blocks if block.layer in layers]
        if not names and self.norm == "batch":
            raise ConfigurationError(
                "algorithm=fedbn keeps batch normalization with the client, and this model has none; choose a model "
                "with BatchNorm, or keep whatever normalization there is: algorithm.norm=any"
            )
        return names
