"""The contract of a model: features, then one linear head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError


class Model(nn.Module, ABC):
    """A network cut into ``features`` and ``head``, built from ``input_shape`` and ``num_outputs``.

    Methods that regularise the representation (FedDecorr, MOON) read ``features``; those that personalise or freeze the
    classifier read ``head``. Parameters start from PyTorch's default initialisation, drawn from the global generator:
    the caller seeds it.

    Attributes:
        head: The last layer, ``(feature size) -> (num_outputs)``; several tasks have their outputs side by side.
    """

    head: nn.Linear

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Map inputs ``(batch, *input_shape)`` to features ``(batch, feature size)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs ``(batch, *input_shape)`` to outputs ``(batch, num_outputs)``, logits of a classification."""
        outputs: Tensor = self.head(self.features(x))
        return outputs


def require_images(
    input_shape: Sequence[int], num_outputs: int, model: str, min_side: int = 1
) -> tuple[tuple[int, int, int], int]:
    """Check what the data set hands to a model of images and return it as plain integers.

    Args:
        input_shape: Channels, height and width.
        num_outputs: Width of the head, at least 1.
        model: Name of the model, for the message.
        min_side: Smallest height and width that the model can take, in pixels.

    Raises:
        ConfigurationError: If the shape is not three positive numbers, an image is too small or there is no output.
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigurationError(f"model={model} needs images of (channels, height, width), got {shape}.")
    if min(shape[1:]) < min_side:
        raise ConfigurationError(
            f"model={model} needs images of at least {min_side} x {min_side} pixels, got {shape[1]} x {shape[2]}; "
            "try model=mlp."
        )
    return (shape[0], shape[1], shape[2]), require_outputs(num_outputs, model)


def require_outputs(num_outputs: int, model: str) -> int:
    """Check the width of the head and return it as a plain integer."""
    if num_outputs < 1:
        raise ConfigurationError(f"model={model} needs at least 1 output, got {num_outputs}.")
    return int(num_outputs)


def require_widths(name: str, values: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """Check a list of layer widths, such as ``model.hidden``, and return it as plain integers."""
    widths = tuple(int(value) for value in values)
    if any(width < 1 for width in widths):
        raise ConfigurationError(f"model.{name} must hold positive widths, got {list(widths)}.")
    if length is not None and len(widths) != length:
        raise ConfigurationError(f"model.{name} must hold {length} widths, got {list(widths)}.")
    return widths
