"""FedNova: normalized averaging, so that clients with more local steps do not pull harder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.algorithm.base import Algorithm, accumulation, plain_momentum
from fedgh.core.types import CohortResult


@dataclass(frozen=True, kw_only=True)
class FedNova(Algorithm):
    """Train as FedAvg, then weigh client k by ``tau_eff p_k / a_k`` with ``tau_eff = sum_k p_k a_k``.

    ``a_k`` is the l1 norm of the coefficients with which local SGD accumulates its gradients. The weights sum to at
    least one, with equality iff all a_k are equal: then it is FedAvg to the bit. Positive weights commute with FedGH,
    so harmonizing the normalized updates and normalizing the harmonized ones are the same thing.

    Reference:
        Wang et al.: "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
        NeurIPS 2020, equations (7) and (9).
    Departures:
        Buffers are averaged by n_k/n, not normalized (the reference code normalizes running variances too, which can
        make them negative), and weights are stored by participant, not by client id.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_momentum(self, "fednova")

    def client_weights(self, weights: Tensor, result: CohortResult) -> Tensor:
        """Return ``tau_eff p_k / a_k``, ``(clients,)`` float64."""
        norm: Tensor = accumulation(result.local_steps, self.optimizer_settings()["momentum"])
        if bool((norm == norm[0]).all()):  # p_k itself, which the arithmetic below would round
            return weights
        effective_steps: Tensor = (weights * norm).sum()
        return effective_steps * weights / norm
