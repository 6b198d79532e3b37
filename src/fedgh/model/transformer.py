"""A small transformer over tokens, with an output at every position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgh.model.base import Model, require_outputs, require_widths
from fedgh.model.layers import Attend


class Transformer(Model):
    """Embedded tokens with learned positions through blocks of causal attention; outputs at every position.

    Args:
        input_shape: Tokens of a sequence, ``(length,)``.
        num_outputs: Width of the head, the number of tokens to predict.
        num_tokens: Token ids go from 0 to this, less one.
        width: Of a token's vector, the feature size.
        depth: Number of blocks.
        heads: Of each block; divides ``width``.

    Raises:
        ConfigurationError: If a setting is outside its range.

    Reference:
        Radford et al., 2018 (GPT), small.
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, num_tokens: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        width, depth = require_widths("width and model.depth", [width, depth])
        self.tokens = nn.Embedding(num_tokens, width)
        self.positions = nn.Parameter(torch.randn(int(input_shape[0]), width) * 0.02)
        self.blocks = nn.Sequential(*(Attend(width, heads, causal=True) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, require_outputs(num_outputs, "transformer"))

    def features(self, x: Tensor) -> Tensor:
        """Map token ids ``(batch, length)`` int64 to features ``(batch, length, width)``."""
        found: Tensor = self.blocks(self.tokens(x) + self.positions[: x.shape[1]])
        return found
