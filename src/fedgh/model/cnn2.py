"""The small convolutional network of the CIFAR-10 experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_images, require_widths
from fedgh.model.layers import Dropout


class CNN2(Model):
    """Two convolutions and one hidden layer.

    conv 3x3, ReLU, conv 3x3, max-pool 2, ReLU, dropout, dense, ReLU, dropout, head; no padding. Pooling before the
    second ReLU gives the values and gradients of pooling after it, at a quarter of its work. With the default widths
    and 3x32x32 images of 10 classes it has 1,626,442 parameters. Features are the hidden layer after dropout.

    Args:
        input_shape: Channels, height and width; at least 6 x 6 pixels.
        num_outputs: Width of the head, the number of classes.
        channels: Width of the two convolutions.
        hidden: Width of the hidden layer, which is the feature size.
        dropout: Probability of dropping after pooling and after the hidden layer, each in [0, 1).

    Raises:
        ConfigurationError: If the images are too small or a setting is outside its range.

    Reference:
        Reddi et al., ICLR 2021 (their EMNIST network, as TensorFlow Federated has it).
    Departures:
        Moved from 1x28x28 to the data set's own shape. FedGH says only "two convolution layers"; this is the closest
        documented reading.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int],
        hidden: int,
        dropout: Sequence[float],
    ) -> None:
        super().__init__()
        (depth, height, width), num_outputs = require_images(input_shape, num_outputs, "cnn2", min_side=6)
        first, second = require_widths("channels", channels, length=2)
        (hidden,) = require_widths("hidden", [hidden])
        if len(dropout) != 2:
            raise ConfigurationError(f"model.dropout must hold 2 probabilities, got {list(dropout)}; try [0.25, 0.5].")
        self.body = nn.Sequential(
            nn.Conv2d(depth, first, kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(first, second, kernel_size=3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            Dropout(dropout[0]),
            nn.Flatten(),
            nn.Linear(second * ((height - 4) // 2) * ((width - 4) // 2), hidden),
            nn.ReLU(),
            Dropout(dropout[1]),
        )
        self.head = nn.Linear(hidden, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, hidden)``."""
        hidden: Tensor = self.body(x)
        return hidden
