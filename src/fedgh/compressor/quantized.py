"""Quantization: every number of an update in a few bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.compressor.base import Compressor, require


@dataclass(frozen=True)
class Quantized(Compressor):
    """Send every number as one of ``2^bits - 1`` evenly spaced levels from -m to m, m being the largest of its bucket.

    Rounded up or down by chance, in proportion to the distance, so that the mean is right; to the nearest level where
    there is a feedback. A bucket takes 4 more bytes, for m. With ``bits: 32`` it is no compression, to the bit.

    Args:
        feedback: See :class:`~fedgh.compressor.base.Compressor`.
        control: See there.
        bits: Of a number, sign included: 2 to 16, or 32.
        bucket: Numbers that share an m.

    Reference:
        Alistarh et al.: "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017.
    Departures:
        Scaled by the largest number instead of the 2-norm, as in the paper's experiments; no entropy coding.
    """

    bits: int
    bucket: int

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = isinstance(self.bits, int) and (2 <= self.bits <= 16 or self.bits == 32)
        require(fits, "bits", "from 2 to 16, or 32 (no compression)", self.bits)
        require(isinstance(self.bucket, int) and self.bucket >= 1, "bucket", "a positive integer; try 512", self.bucket)

    @property
    def identity(self) -> bool:
        """See :class:`~fedgh.compressor.base.Compressor`."""
        return self.bits == 32

    def compress(self, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """See :class:`~fedgh.compressor.base.Compressor`."""
        size, levels = len(vector), 2 ** (self.bits - 1) - 1
        buckets = math.ceil(size / self.bucket)
        padded = torch.cat([vector, vector.new_zeros(buckets * self.bucket - size)]).view(buckets, self.bucket)
        unit = padded.abs().amax(1, keepdim=True) / levels
        steps = torch.where(unit > 0, padded / unit, 0.0)
        if self.feedback == "none":
            steps = (steps + torch.rand(steps.shape, generator=generator).to(steps)).floor()
        else:
            steps = steps.round()
        arrived = (steps.clamp(-levels, levels) * unit).view(-1)[:size]
        return arrived, math.ceil(size * self.bits / 8) + 4 * buckets
