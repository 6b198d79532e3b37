"""LeNet-5, with ReLU and max-pooling, as most federated learning papers have it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.model.base import Model, require_images


class LeNet5(Model):
    """Two 5x5 convolutions (6 and 16 channels), each with ReLU and 2x2 max-pooling; dense layers of 120 and 84.

    Images below 32 pixels are padded by two on each side, as the published network sees 28x28 digits in 32x32 fields.
    61,706 parameters for 1x28x28 and ten classes, 62,006 for 3x32x32. No normalization.

    Args:
        input_shape: Channels, height and width; at least 12 x 12 pixels.
        num_outputs: Width of the head, the number of classes.

    Raises:
        ConfigurationError: If the images are too small.

    Reference:
        LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 1998.
    Departures:
        ReLU for the scaled tangent, max-pooling without weights, every map connected to all, a linear head.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        (depth, height, width), num_outputs = require_images(input_shape, num_outputs, "lenet5", min_side=12)
        padding = 2 if min(height, width) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        self.body = nn.Sequential(
            *(nn.Conv2d(depth, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * rows * columns, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        )
        self.head = nn.Linear(84, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, 84)``."""
        hidden: Tensor = self.body(x)
        return hidden
