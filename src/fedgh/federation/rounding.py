"""Where rounding decides: networks and methods whose runs agree between executors only as two seeds do."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgh.algorithm.base import Algorithm


def rounding_note(module: nn.Module, algorithm: Algorithm) -> str:
    """Say in one line that another executor, layout or number of threads acts like another seed, where it does.

    Executors, memory layouts, thread counts and devices sum in different orders, so a first step differs by about 1e-7.
    Most networks keep it there for many rounds. Two kinds do not: in float32, batch normalization divides by deviations
    that are small at some channels (MobileNetV2 is as far apart after three steps as training moves it), and an
    algorithm with ``amplifies_rounding = True`` in its class (FedDecorr, which divides by the deviations of features:
    1e-7 becomes 1e-1 in five rounds).

    Args:
        module: The network.
        algorithm: What clients compute.

    Returns:
        The line; empty where rounding stays rounding.
    """
    normalizes = any(isinstance(part, _BatchNorm) for part in module.modules())
    double = all(param.dtype == torch.float64 for param in module.parameters())
    causes = [f"{type(module).__name__} has batch normalization"] * (normalizes and not double)
    causes += [f"{type(algorithm).__name__} amplifies rounding"] * bool(getattr(algorithm, "amplifies_rounding", False))
    if not causes:
        return ""
    return (
        f"{' and '.join(causes)}: another executor, memory_format, number of threads or device acts like another seed; "
        "compare runs that share them"
    )
