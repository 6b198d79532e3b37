"""LeNet-5, with ReLU and max-pooling, as most federated learning papers have it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_images, require_widths


class LeNet5(Model):
    """Two 5x5 convolutions (6 and 16 channels), each with ReLU and 2x2 max-pooling; dense layers of 120 and 84.

    Images below 32 pixels are padded by two on each side, as the published network sees 28x28 digits in 32x32 fields.
    61,706 parameters for 1x28x28 and ten classes, 62,006 for 3x32x32. No normalization.

    Args:
        input_shape: Channels, height and width; at least 12 x 12 pixels.
        num_outputs: Width of the head, the number of classes.
        channels: Widths of the two convolutions; 20 and 50 in the LeNet of Caffe, which domain adaptation uses.
        hidden: Widths of the dense layers; one of 500 there.
        pad: Whether images below 32 pixels are padded; there they are not.

    Raises:
        ConfigurationError: If the images are too small or a width is not positive.

    Reference:
        LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 1998.
    Departures:
        ReLU for the scaled tangent, max-pooling without weights, every map connected to all, a linear head.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84),
        pad: bool = True,
    ) -> None:
        super().__init__()
        (depth, height, width), num_outputs = require_images(input_shape, num_outputs, "lenet5", min_side=12)
        first, second = require_widths("channels", channels, length=2)
        padding = 2 if pad and min(height, width) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        if min(rows, columns) < 1:
            raise ConfigurationError(
                f"model=lenet5 without padding needs images of at least 16 x 16 pixels, got {height} x {width}."
            )
        widths = [second * rows * columns, *require_widths("hidden", hidden)]
        self.body = nn.Sequential(
            *(nn.Conv2d(depth, first, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())),
        )
        self.head = nn.Linear(widths[-1], num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, hidden[-1])``."""
        hidden: Tensor = self.body(x)
        return hidden
