"""FedDisco: clients whose labels are far from uniform count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, require
from fedgh.core.types import CohortResult, Report, Trained

if TYPE_CHECKING:
    from fedgh.client.view import ClientView

MEASURES = ("kl", "l1", "l2", "cosine")


@dataclass(frozen=True, kw_only=True)
class FedDisco(Algorithm):
    """Train as FedAvg does, then count client k by ``relu(p_k - a d_k + b)``, normalized over the participants.

    d_k is the discrepancy between the client's label distribution and the uniform one. Label counts go up beside the
    update, which tells the server what each client holds. If nobody were left to count, all count by p_k. With ``a: 0``
    and ``b: 0`` it is FedAvg to the bit.

    Args:
        a: Strength of the discrepancy, >= 0; 0.5.
        b: Added to every weight, >= 0; 0.1.
        measure: ``kl`` (divided by its sum over the participants), ``l1``, ``l2`` or ``cosine`` (one minus it); the
            authors' default is ``kl``.

    Reference:
        Ye et al.: "FedDisco: Federated Learning with Discrepancy-Aware Collaboration", ICML 2023, equation (4), and the
        released code, whose defaults these are.
    Departures:
        The released code stops with an error where no weight is positive.
    """

    a: float
    b: float
    measure: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.a >= 0, "a", "0 or more; 0.5 in the authors' code", self.a)
        require(self.b >= 0, "b", "0 or more; 0.1 in the authors' code", self.b)
        require(self.measure in MEASURES, "measure", f"one of {', '.join(MEASURES)}", self.measure)

    def report(self, client: ClientView, trained: Trained) -> Report:  # noqa: ARG002
        """Send the label counts."""
        return Report(client.state, {"label_counts": client.label_counts})

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return the discounted weights, ``(clients,)`` float64."""
        if self.a == self.b == 0:
            return weights
        counts = result.messages["label_counts"].cpu().to(torch.float64)
        scores = (weights - self.a * discrepancy(counts, self.measure) + self.b).relu()
        return scores / scores.sum() if scores.any() else weights


def discrepancy(counts: Tensor, measure: str) -> Tensor:
    """Return how far label distributions are from uniform, ``(clients,)``.

    Args:
        counts: Examples per class, ``(clients, classes)`` float64.
        measure: See :class:`FedDisco`.
    """
    shares = counts / counts.sum(1, keepdim=True)
    classes = shares.shape[1]
    if measure == "kl":
        divergence = torch.xlogy(shares, shares * classes).sum(1)
        return divergence / divergence.sum() if divergence.any() else divergence
    if measure == "cosine":
        cosine: Tensor = shares.sum(1) / (shares.square().sum(1) * classes).sqrt()
        return 1 - cosine
    apart = (shares - 1 / classes).abs()
    return apart.sum(1) if measure == "l1" else apart.square().sum(1).sqrt()
