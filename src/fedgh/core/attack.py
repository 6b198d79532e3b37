"""Projected gradient ascent on inputs: what adversarial training trains on and robust accuracy is measured with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad


def pgd(loss: Callable[[Tensor], Tensor], inputs: Tensor, ball: tuple[Tensor, ...], steps: int) -> Tensor:
    """Return inputs within a box around ``inputs`` with a larger loss.

    ``x <- P(x + step sign(grad loss(x)))``, from the inputs themselves: no random start.

    Args:
        loss: A scalar function of inputs ``(B, *shape)``, vectorizable.
        inputs: ``(B, *shape)``.
        ball: Lowest and highest valid number, half the width of the box, and the length of a step; each a number or
            ``(channels, 1, 1)``.
        steps: Steps of ascent.

    Reference:
        Madry et al.: "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """
    low, high, epsilon, step = ball
    least, most = torch.maximum(inputs - epsilon, low), torch.minimum(inputs + epsilon, high)
    attacked = inputs
    for _ in range(steps):
        direction = grad(loss)(attacked).sign()
        attacked = torch.minimum(torch.maximum(attacked + step * direction, least), most)
    return attacked
