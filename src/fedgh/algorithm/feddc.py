"""FedDC: FedDyn's drift, which the server puts back, and SCAFFOLD's correction."""

from __future__ import annotations

from dataclasses import dataclass

from fedgh.algorithm.base import require
from fedgh.algorithm.feddyn import FedDyn
from fedgh.algorithm.scaffold import Scaffold


@dataclass(frozen=True, kw_only=True)
class FedDC(FedDyn, Scaffold):
    """Step along ``g + alpha (theta - w + h_k) + c - c_k``; afterwards ``h_k <- h_k + theta - w``.

    h_k is the drift of client k; c and c_k are SCAFFOLD's. Without the correction it is FedDyn, and its direction at
    alpha = 0 is SCAFFOLD's. ``weights`` say p_k in both memories and in the average alike; ``uniform`` is the authors'.
    No neutral setting: as alpha goes to 0 the drift is still added at the server.

    Args:
        alpha: Strength of the pull, > 0; 0.01 in the authors' CIFAR-10 script.
        variant: How the drift gets to the server. ``released``, the authors' code: ``w <- w + aggregate + sum_k p_k
            h_k`` over *all* clients, from raw updates. ``paper``: a client sends ``theta + h_k``, and the participants'
            count; their updates hold the drift, which is harmonized with them. The same where everybody takes part;
            elsewhere ``paper`` may grow without bound.

    Reference:
        Gao et al.: "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction", CVPR 2022,
        and the released code.
    Departures:
        c_k is divided by the client's own steps at the round's rate (the release: by the steps of a client of mean size
        at the first round's rate, though the rate decays). The authors clip gradients at norm 10, use SGD without
        momentum, and scale alpha and c by n / (n_k N) per client.
    """

    variant: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.variant in ("released", "paper"), "variant", "released or paper", self.variant)

    def _sends_h(self) -> bool:
        return self.variant == "paper"
