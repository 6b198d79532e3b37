"""Top-k: the largest numbers of an update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.compressor.base import Compressor, kept_of, require_share


@dataclass(frozen=True)
class TopK(Compressor):
    """Send the numbers of largest absolute value, each with its place; of equal ones any.

    A number takes its own bytes and 4 for the place (8 beyond 2^31 places); where that is more than the whole update,
    the update is sent whole, still with the others zero. With ``share: 1`` it is no compression, to the bit.

    Args:
        feedback: See :class:`~fedgh.compressor.base.Compressor`.
        control: See there.
        share: k as a part of the numbers that travel, in (0, 1].

    Reference:
        Aji, Heafield: "Sparse Communication for Distributed Gradient Descent", EMNLP 2017.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.share)

    @property
    def identity(self) -> bool:
        """See :class:`~fedgh.compressor.base.Compressor`."""
        return self.share == 1

    def compress(self, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:  # noqa: ARG002
        """See :class:`~fedgh.compressor.base.Compressor`."""
        count = kept_of(self.share, len(vector))
        places = vector.abs().topk(count, sorted=False).indices
        arrived = torch.zeros_like(vector)
        arrived[places] = vector[places]
        place = 4 if len(vector) <= 1 << 31 else 8
        return arrived, min(count * (vector.itemsize + place), len(vector) * vector.itemsize)
