"""Residual networks in their forms for small images: ResNet-18 as CIFAR papers have it, and He et al.'s ResNet-20."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.base import Model, require_images, require_widths
from fedgh.model.layers import normalization

SHORTCUTS = ("convolution", "padding")


def _convolution(norm: str, width_in: int, width_out: int, kernel: int, stride: int) -> list[nn.Module]:
    after = normalization(norm, width_out, spatial=True)
    layer = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, bias=after is None)
    return [layer, *([after] if after else [])]


class Padding(nn.Module):
    """The shortcut without parameters: every other pixel, further channels zero."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width, h, w)`` to ``(batch, width + more, ceil(h / stride), ceil(w / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; ReLU after their sum."""

    def __init__(self, width_in: int, width_out: int, stride: int, norm: str, shortcut: str) -> None:
        super().__init__()
        first = _convolution(norm, width_in, width_out, 3, stride)
        self.residual = nn.Sequential(*first, nn.ReLU(), *_convolution(norm, width_out, width_out, 3, 1))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            layers = _convolution(norm, width_in, width_out, 1, stride)
            self.shortcut = (
                nn.Sequential(*layers) if shortcut == "convolution" else Padding(stride, width_out - width_in)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width_out, ceil(h / stride), ceil(w / stride))``."""
        return F.relu(self.residual(x) + self.shortcut(x))


class ResNet(Model):
    """A 3x3 stem, stages of residual blocks that halve the size from the second on, and the mean over positions.

    Args:
        input_shape: Channels, height and width. The last stage has ``side / 2^(stages - 1)`` pixels; where that is one,
            batch normalization cannot train on a batch of one image.
        num_outputs: Width of the head, the number of classes.
        widths: Channels of each stage; the first is the stem's, the last the feature size. At least one.
        blocks: Blocks of each stage, two convolutions each.
        shortcut: Where sizes change: ``convolution`` (1x1, He's option B) or ``padding`` (no parameters, option A).
        norm: After each convolution: ``batch``, ``group`` (no running statistics) or ``none`` (a bias instead).

    Raises:
        ConfigurationError: If the images are none, or a setting is outside its range.

    Reference:
        He et al., CVPR 2016. ``resnet18``: widths 64 to 512, two blocks each, 11,173,962 parameters for ten classes;
        the CIFAR form has a 3x3 stem of stride 1 and no pooling. ``resnet20``: their section 4.2, three stages of three
        blocks, 269,722 parameters. Group normalization in its place: Hsieh et al., ICML 2020.
    Departures:
        PyTorch's default initialisation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        widths: Sequence[int],
        blocks: int,
        shortcut: str,
        norm: str,
    ) -> None:
        super().__init__()
        (depth, _, _), num_outputs = require_images(input_shape, num_outputs, "resnet")
        stages = require_widths("widths", widths)
        if not stages or blocks < 1:
            raise ConfigurationError(
                f"model.widths and model.blocks must name at least one, got {list(widths)} and {blocks}."
            )
        if shortcut not in SHORTCUTS:
            raise ConfigurationError(f"model.shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}.")
        width = stages[0]
        layers = [*_convolution(norm, depth, width, 3, 1), nn.ReLU()]
        for stage, width_out in enumerate(stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(Block(width, width_out, stride, norm, shortcut))
                width = width_out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, widths[-1])``."""
        pooled: Tensor = self.body(x)
        return pooled
