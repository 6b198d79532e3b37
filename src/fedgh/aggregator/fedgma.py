"""Gradient masked averaging: coordinates on whose sign clients disagree move less, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.aggregator.base import CoordinateRule, require


@dataclass(frozen=True)
class FedGMA(CoordinateRule):
    """Multiply every coordinate of the mean by how much clients agree on its sign, where they agree too little.

    ``A = |sum_k p_k sign(g_k)|``, p the weights with sum one; the mean where ``A >= threshold``, elsewhere ``A`` times
    the mean, or 0. A client that leaves a coordinate alone lowers its A.

    ``aggregator=sign_agreement`` is this rule with threshold 1 and a hard mask: only what all clients agree on moves.

    Attributes:
        threshold: Agreement from which on the mean is taken as it is, 0 (the mean) to 1. Few clients give few values:
            of three, all thresholds between 1/3 and 1 are the same.
        soft: Whether the rest is scaled by A (FedGMA), or left out (the earlier AND-mask).

    Reference:
        Tenison et al.: "Gradient Masked Averaging for Federated Learning", TMLR 2023 (arXiv 2201.11986); hard masks:
        Parascandolo et al.: "Learning explanations that are hard to vary", ICLR 2021, and, of all signs, Mansilla et
        al.: "Domain Generalization via Gradient Surgery", ICCV 2021 (Agr-Sum).
    Departures:
        Weights count in mean and agreement (the paper: evenly). Agr-Sum adds gradients up, here they are averaged;
        Agr-Rand, noise where signs disagree, is not there.
    """

    threshold: float
    soft: bool

    uses_weights = True

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, "threshold", "in [0, 1]", self.threshold)

    def reduce(self, values: Tensor, weights: Tensor) -> Tensor:
        """Reduce ``(clients, columns)`` to ``(columns,)``."""
        agreement = (weights / weights.sum() @ values.sign()).abs()
        rest = agreement if self.soft else torch.zeros_like(agreement)
        rounding = len(values) * torch.finfo(values.dtype).eps
        return torch.where(agreement >= self.threshold - rounding, 1.0, rest) * (weights @ values)
