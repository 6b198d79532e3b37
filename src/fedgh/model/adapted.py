"""A classifier with what methods of domain adaptation add to it: a discriminator, a second head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_widths


class Adapted(Model):
    """Another model, whose added parts only the algorithm runs; what it predicts is the other model's business.

    Args:
        input_shape: Of one example.
        num_outputs: Width of the head, C.
        body: Builds the other model, cut into ``features`` (F of them) and a linear ``head``.
        discriminator: Widths of the hidden layers of the part that tells domains apart; None for no such part.
        reads: What the discriminator reads: ``features`` (F numbers) or ``products`` of these with probabilities (F C).
        second_head: Whether there is a second head like the first.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        body: Callable[..., nn.Module],
        discriminator: Sequence[int] | None,
        reads: str,
        second_head: bool,
    ) -> None:
        super().__init__()
        if reads not in ("features", "products"):
            raise ConfigurationError(f"model.reads must be features or products, got {reads!r}.")
        network = body(input_shape=input_shape, num_outputs=num_outputs)
        if not hasattr(network, "features") or not isinstance(getattr(network, "head", None), nn.Linear):
            raise ConfigurationError("model.body must be cut into features and a linear head, such as mlp or cnn2.")
        head: Any = network.head
        self.head, network.head = head, nn.Identity()
        self.body: Any = network
        width = self.head.in_features
        if discriminator is not None:
            inputs = width * (num_outputs if reads == "products" else 1)
            widths = [inputs, *require_widths("discriminator", discriminator)]
            layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
            self.discriminator = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        if second_head:
            self.second_head = nn.Linear(width, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map inputs to the other model's features, ``(batch, F)``."""
        found: Tensor = self.body.features(x)
        return found
