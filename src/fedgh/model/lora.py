"""A frozen body with low-rank adapters: only they, and the head, are trained and travel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model


class Adapted(nn.Module):
    """A frozen linear layer W plus ``(scale / rank) B A``; B starts at zero, so that it starts as the layer alone."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, scale / rank
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        low: Tensor = self.layer(x) + self.factor * F.linear(F.linear(x, self.down), self.up)
        return low


class LoRA(Model):
    """Another model whose body is frozen, with an adapter at each of its linear layers; the head is trained whole.

    Frozen parameters are no part of an update, a cosine or a message: every client has the same, from the run's seed or
    from pretrained weights. Running statistics of a frozen body still move.

    Args:
        input_shape: Of the data set.
        num_outputs: Width of the head.
        base: The model, without its first two arguments.
        rank: Of the adapters; 0 for none: the head alone is trained.
        scale: An adapter counts ``scale / rank`` times; alpha in the paper.

    Raises:
        ConfigurationError: If ``rank`` is negative, or positive where the body has no linear layer.

    Reference:
        Hu et al., ICLR 2022.
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, base: Callable[..., Model], rank: int, scale: float
    ) -> None:
        super().__init__()
        if rank < 0:
            raise ConfigurationError(f"model.rank must be 0 (a frozen body) or more, got {rank}; try 4.")
        whole = base(input_shape, num_outputs)
        self.head = whole.head
        whole.head = nn.Identity()  # type: ignore[assignment]
        self.body = whole.requires_grad_(False)
        layers = [(path, layer) for path, layer in self.body.named_modules() if isinstance(layer, nn.Linear)]
        if rank and not layers:
            raise ConfigurationError(
                "model=lora adapts linear layers, and the body has none; type model.rank=0 to train the head alone, or "
                "choose another body, such as model@model.base=vit"
            )
        for path, layer in layers if rank else []:
            parent, _, last = path.rpartition(".")
            setattr(self.body.get_submodule(parent), last, Adapted(layer, rank, scale))

    def features(self, x: Tensor) -> Tensor:
        """Map inputs to the features of the adapted body."""
        return self.body.features(x)
