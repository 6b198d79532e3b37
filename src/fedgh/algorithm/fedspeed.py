"""FedSpeed: FedDyn whose gradient looks ahead as SAM's does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedgh.algorithm.base import require
from fedgh.algorithm.feddyn import FedDyn
from fedgh.algorithm.sam import SAM


@dataclass(frozen=True, kw_only=True)
class FedSpeed(FedDyn, SAM):
    """Step along ``(1 - share) g + share g' + alpha (theta - w + H_k)``, g' the gradient at ``theta + rho g / ||g||``.

    Afterwards ``H_k <- H_k + theta - w``. ``weights`` say p_k in H and in the average alike; ``uniform`` is the
    authors'. With ``rho: 0`` it is FedDyn.

    Args:
        alpha: Strength of the pull, > 0; 0.1 in the authors' code. The paper writes ``1 / lambda``, lambda = 10.
        share: Of the gradient after the ascent, in [0, 1], the paper's alpha; 1 in the authors' code.
        rho: See :class:`~fedgh.algorithm.sam.SAM`; 0.1 in the authors' code.
        statistics: See there.
        variant: How H_k gets to the server. ``released``, the authors' code: ``w <- w + aggregate + sum_k p_k H_k``
            over *all* clients, from raw updates. ``paper``: a client sends ``theta + H_k``, and the participants'
            count; their updates hold H_k, which is harmonized with them. The same where everybody takes part;
            elsewhere ``paper`` misses the optimum.

    Reference:
        Sun et al.: "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy",
        ICLR 2023, algorithm 1, and the released code (FL-Simulator).
    Departures:
        The ascent has the length rho, as in the release; in the paper it is ``rho g``. The release clips gradients at
        norm 10 and uses SGD without momentum.
    """

    share: float
    variant: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.share <= 1, "share", "from 0 to 1, of the gradient after the ascent", self.share)
        require(self.variant in ("released", "paper"), "variant", "released or paper", self.variant)

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        return (1 - self.share) * first + self.share * second

    def _sends_h(self) -> bool:
        return self.variant == "paper"
