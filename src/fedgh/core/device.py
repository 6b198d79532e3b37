"""The device that trains: copies to it that nobody waits for, and the precision it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.core.machine import FP32_PRECISIONS as FP32_PRECISIONS


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor of the host on a device, without waiting for what the device has to do before.

    A copy from ordinary memory would first wait until the device is idle.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


_before: dict[str, str] = {}


def set_fp32_precision(precision: str | None) -> None:
    """Choose what matrix products and convolutions of float32 tensors are computed in on a GPU.

    PyTorch's own choice is TF32 for convolutions and full precision for products. Products over the matrix of updates
    are of full precision whatever is chosen here.

    Args:
        precision: ``ieee`` or ``tf32``; None gives back what the process had before the first choice.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if precision not in (None, *FP32_PRECISIONS):
        raise ConfigurationError(
            f"fp32_precision must be null or one of {', '.join(FP32_PRECISIONS)}, got {precision!r}"
        )
    if precision is None:
        restore_precisions(_before)
        _before.clear()
        return
    if not _before:
        _before.update({name: value for name, value in precisions().items() if name in _ON_GPUS})
    restore_precisions(dict.fromkeys(_ON_GPUS, precision))


def precisions() -> dict[str, str]:
    """Return what float32 is computed in, by backend, for another process to :func:`restore_precisions`.

    Asked of PyTorch's newer interface: the older one raises an error where the newer has been used.
    """
    return {name: backend.fp32_precision for name, backend in _backends().items()}


def restore_precisions(settings: Mapping[str, str]) -> None:
    """Set what :func:`precisions` returned."""
    for name, value in settings.items():
        _backends()[name].fp32_precision = value


_ON_GPUS = ("products", "convolutions", "recurrences")


def _backends() -> dict[str, Any]:
    backends: Any = torch.backends
    on_gpus = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return {**dict(zip(_ON_GPUS, on_gpus, strict=True)), "products on CPUs": backends.mkldnn.matmul}
