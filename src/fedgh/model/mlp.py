"""Fully connected network; without hidden layers, logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from fedgh.model.base import Model, require_outputs, require_widths
from fedgh.model.layers import normalization


class MLP(Model):
    """Flattened numbers through dense layers with ReLU, then the head.

    Without hidden layers the features are the flattened inputs and the model is multinomial logistic regression: 30,730
    parameters for 3x32x32 images of 10 classes.

    Args:
        input_shape: Channels, height and width, or any other shape.
        num_outputs: Width of the head, the number of classes.
        hidden: Width of each hidden layer; empty for logistic regression.
        norm: Between each hidden layer and its ReLU: ``batch``, ``group`` or ``none``; runs stored before the setting
            existed go on with its default.

    Raises:
        ConfigurationError: If a width is not positive.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int], norm: str = "none") -> None:
        super().__init__()
        num_outputs = require_outputs(num_outputs, "mlp")
        widths = [prod(input_shape), *require_widths("hidden", hidden)]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            between = normalization(norm, width_out, spatial=False)
            layers += [nn.Linear(width_in, width_out), *([between] if between else []), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map inputs ``(batch, *input_shape)`` to features ``(batch, last width)``."""
        hidden: Tensor = self.body(x)
        return hidden
