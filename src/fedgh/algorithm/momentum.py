"""What momentum SGD makes of a gradient: for methods that divide an update by the steps it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fedgh.algorithm.base import Algorithm


def plain_momentum(algorithm: Algorithm, name: str) -> float:
    """Return the momentum of a local optimizer whose :func:`accumulation` is known.

    Raises:
        ConfigurationError: If it is not SGD with plain momentum.
    """
    settings = algorithm.optimizer_settings()
    if settings["name"] != "SGD" or settings["nesterov"] or settings["dampening"]:
        raise ConfigurationError(
            f"algorithm={name} knows the normalization of SGD with plain momentum only, got {settings['name']}; "
            "set algorithm.optimizer._target_=torch.optim.SGD without nesterov or dampening"
        )
    momentum: float = settings["momentum"]
    if not 0 <= momentum < 1:
        raise ConfigurationError(
            f"algorithm={name} needs algorithm.optimizer.momentum of at least 0 and below 1, got {momentum}: at 1 the "
            "normalization is infinite; try 0.9"
        )
    return momentum


def accumulation(local_steps: int | Tensor, momentum: float) -> Any:
    """Return by how much a constant gradient is multiplied, beside the rate, in the update of momentum SGD.

    The gradient of step s enters ``(1 - rho^(tau - s)) / (1 - rho)`` times, s = 0 .. tau - 1; their sum is
    ``(tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)``, and tau itself without momentum.

    Args:
        local_steps: tau, a number or ``(clients,)``.
        momentum: rho, in [0, 1).

    Reference:
        Wang et al., NeurIPS 2020 (FedNova): a_k, the l1 norm of the accumulation weights.
    """
    tau = local_steps.to(torch.float64) if isinstance(local_steps, Tensor) else float(local_steps)
    rho = momentum
    return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
