"""Between the host and the device that trains: copies that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor of the host on a device, without waiting for what the device has to do before.

    A copy from ordinary memory would first wait until the device is idle.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
