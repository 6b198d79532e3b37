"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_images, require_widths
from fedgh.model.layers import Attend


class ViT(Model):
    """Patches as vectors with learned positions, blocks of attention, and the mean over patches. No batch statistics.

    Args:
        input_shape: Channels, height and width; both sides multiples of ``patch``.
        num_outputs: Width of the head, the number of classes.
        patch: Side of a patch in pixels.
        width: Of a patch's vector, the feature size.
        depth: Number of blocks.
        heads: Of each block; divides ``width``.

    Raises:
        ConfigurationError: If the images cannot be cut into patches, or a setting is outside its range.

    Reference:
        Dosovitskiy et al., ICLR 2021; the mean over patches in place of a class token as in Beyer et al., 2022
        (arXiv:2205.01580).
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        (channels, rows, columns), num_outputs = require_images(input_shape, num_outputs, "vit")
        width, depth, patch = require_widths("width, model.depth and model.patch", [width, depth, patch])
        if rows % patch or columns % patch:
            raise ConfigurationError(
                f"model.patch={patch} does not divide images of {rows} x {columns} pixels; try "
                f"{next(size for size in (4, 7, 5, 3, 2, 1) if rows % size == columns % size == 0)}."
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(rows // patch * (columns // patch), width) * 0.02)
        self.blocks = nn.Sequential(*(Attend(width, heads, causal=False) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, width)``."""
        found: Tensor = self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.positions).mean(1)
        return found
