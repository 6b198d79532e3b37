"""FedASAM: FedSAM with a step of ascent that adapts to the size of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedgh.algorithm.base import require
from fedgh.algorithm.sam import SAM
from fedgh.core.updates import Block


@dataclass(frozen=True, kw_only=True)
class FedASAM(SAM):
    """Step along ``grad f(theta + rho T^2 g / ||T g||)``, ``T = |theta| + eta`` for weights and 1 for biases.

    Weights are the parameters with ``weight`` in their name, those of normalization layers among them. With ``rho: 0``
    it is FedAvg to the bit.

    Args:
        rho: Size of the ascent step, >= 0, where parameters are of size one; 0.7 in the authors' CIFAR-10 script.
        eta: Added to the size of a weight, >= 0, not a rate; 0.2 there.
        statistics: See :class:`~fedgh.algorithm.sam.SAM`.

    Reference:
        Caldarola, Caputo, Ciccone: "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022,
        and the released code. Kwon et al.: "ASAM: Adaptive Sharpness-Aware Minimization", ICML 2021.
    Departures:
        No averaging over the last rounds (SWA).
    """

    eta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, "eta", "0 or more; 0.2 in the authors' code", self.eta)

    def _ascent(self, gradient: Tensor, params: Tensor, blocks: Sequence[Block]) -> Tensor:
        """Return ``T^2 g / ||T g||``."""
        weights = _weights(tuple(blocks)).to(params.device)
        size = torch.where(weights, params.abs() + self.eta, 1.0)
        return torch.div(size.square() * gradient, (size * gradient).norm() + 1e-16)


@lru_cache(maxsize=32)
def _weights(blocks: tuple[Block, ...]) -> Tensor:
    return torch.cat([torch.full((block.stop - block.start,), "weight" in block.name) for block in blocks])
