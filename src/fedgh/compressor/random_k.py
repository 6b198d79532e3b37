"""Random-k: some numbers of an update, drawn anew by each client and round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.compressor.base import Compressor, kept_of, require_share


@dataclass(frozen=True)
class RandomK(Compressor):
    """Send k numbers drawn without replacement, times d / k where there is no feedback, which makes it unbiased.

    The server draws the same places from the seed, so no place travels. With ``share: 1`` it is no compression, to the
    bit.

    Args:
        feedback: See :class:`~fedgh.compressor.base.Compressor`.
        control: See there.
        share: k as a part of the numbers that travel, in (0, 1].

    Reference:
        Konecny et al.: "Federated Learning: Strategies for Improving Communication Efficiency", arXiv 1610.05492,
        section 2 (random mask); Stich et al., NeurIPS 2018, for the feedback.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.share)

    @property
    def identity(self) -> bool:
        """See :class:`~fedgh.compressor.base.Compressor`."""
        return self.share == 1

    def compress(self, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """See :class:`~fedgh.compressor.base.Compressor`."""
        count = kept_of(self.share, len(vector))
        places = torch.randperm(len(vector), generator=generator)[:count].to(vector.device)
        arrived = torch.zeros_like(vector)
        arrived[places] = vector[places] * (len(vector) / count if self.feedback == "none" else 1)
        return arrived, count * vector.itemsize
