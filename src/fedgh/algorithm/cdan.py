"""CDAN: the discriminator sees features and what is predicted from them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedgh.algorithm.dann import Dann, reverse
from fedgh.task.adaptation import SOURCE, TARGET


@dataclass(frozen=True, kw_only=True)
class Cdan(Dann):
    """DANN whose discriminator reads the products ``p f^T`` of probabilities (detached) and features.

    Takes ``model=adapted model.reads=products``.

    Args:
        entropy: CDAN+E: weigh rows by ``1 + exp(-H)``, H the entropy of the prediction, within each domain as shares.
            The gradient of H is reversed like that of the features.

    Reference:
        Long, Cao, Wang, Jordan: "Conditional Adversarial Domain Adaptation", NeurIPS 2018, equations (5), (6), (9), and
        thuml/CDAN.
    Departures:
        Always the exact products, never their random projection (in the release where there are many). See ``dann``.
    """

    per_class: ClassVar[bool] = True

    entropy: bool

    def read(self, outputs: Tensor, features: Tensor) -> Tensor:
        """Return the products, ``(B, classes F)``."""
        return (outputs.softmax(-1).detach()[:, :, None] * features[:, None, :]).flatten(1)

    def weigh(self, outputs: Tensor, domains: Tensor, reversal: Tensor) -> Tensor:
        """Return the weight of each row, ``(B,)``."""
        if not self.entropy:
            return super().weigh(outputs, domains, reversal)
        p = outputs.softmax(-1)
        certainty = 1 + torch.exp(-reverse(-(p * (p + 1e-5).log()).sum(-1), reversal))
        shares = torch.zeros_like(certainty)
        for domain in (SOURCE, TARGET):
            own = certainty * (domains == domain)
            shares = shares + own / own.sum().detach().clamp_min(1e-12)
        return shares
