"""MCD: two heads that disagree about the target as much as they can, and features that leave them little room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgh.algorithm.dann import Alignment, reverse
from fedgh.core.forward import Forward
from fedgh.task.adaptation import TARGET


@dataclass(frozen=True, kw_only=True)
class Mcd(Alignment):
    """Minimize both heads' cross-entropy minus ``trade_off`` times their discrepancy, which the features minimize.

    The discrepancy is the mean of ``|p_1 - p_2|`` over target examples and classes; what reaches the features through
    it is reversed, so one step trains both sides. Takes ``model=adapted model.discriminator=null
    model.second_head=true``. The first head predicts.

    Reference:
        Saito, Watanabe, Ushiku, Harada: "Maximum Classifier Discrepancy for Unsupervised Domain Adaptation", CVPR 2018,
        section 3.3; in one step with gradient reversal, which the paper names as a variant.
    Departures:
        The authors take three steps in turn (both; heads alone; features alone, four times) with ``trade_off`` 1 and no
        c(t). GH's release harmonizes the step of the heads alone, where the features, whose gradients are compared, do
        not move. The authors report the sum of both heads.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adaptation", "second_head"})
    added: ClassVar[str] = "second_head"

    def supervised(
        self, forward: Forward, params: Tensor, outputs: Tensor, features: Tensor, targets: Tensor
    ) -> Tensor:
        """Return the cross-entropies of both heads."""
        second = forward.part(self.added, params, features)
        return forward.task.loss(outputs, targets) + forward.task.loss(second, targets)

    def alignment(
        self, forward: Forward, params: Tensor, outputs: Tensor, features: Tensor, domains: Tensor, reversal: Tensor
    ) -> Tensor:
        """Return minus the discrepancy."""
        reversed_features = reverse(features, reversal)
        first, second = (forward.part(name, params, reversed_features).softmax(-1) for name in ("head", self.added))
        counts = (domains == TARGET).to(outputs)
        return -((first - second).abs().mean(-1) * counts).sum() / counts.sum().clamp_min(1)
