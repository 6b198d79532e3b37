"""Six convolutions and a mean over positions; small enough to pass every image of a set through it once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.model.base import Model, require_images, require_widths
from fedgh.model.layers import normalization

STRIDES = (1, 2, 1, 2, 1, 2)


class Conv6(Model):
    """Six 3x3 convolutions with normalization and ReLU, strides 1 2 1 2 1 2, then the mean over positions.

    With the default widths and RGB images the body has 745,024 parameters and 192 features; it reads images of any
    size. ``fedgh-encode`` trains it as a frozen encoder (``dataset=encoded``).

    Args:
        input_shape: Channels, height and width.
        num_outputs: Width of the head, the number of classes.
        channels: Widths of the six convolutions; the last is the feature size.
        norm: ``batch``, ``group`` (no running statistics) or ``none`` (a bias instead).

    Raises:
        ConfigurationError: If the images are none, or a setting is outside its range.

    Reference:
        A plain network in the manner of VGG (Simonyan and Zisserman, ICLR 2015), with strides for pooling; not of any
        one paper.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, channels: Sequence[int], norm: str) -> None:
        super().__init__()
        (width, _, _), num_outputs = require_images(input_shape, num_outputs, "conv6")
        layers: list[nn.Module] = []
        for width_out, stride in zip(require_widths("channels", channels, length=6), STRIDES, strict=True):
            after = normalization(norm, width_out, spatial=True)
            layers.append(nn.Conv2d(width, width_out, 3, stride, padding=1, bias=after is None))
            layers += [*([after] if after else []), nn.ReLU()]
            width = width_out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, channels[-1])``."""
        pooled: Tensor = self.body(x)
        return pooled
