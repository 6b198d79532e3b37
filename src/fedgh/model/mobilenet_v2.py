"""MobileNetV2 in the layout for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.model.base import Model, require_images
from fedgh.model.layers import normalization

# One row a stage, as in table 2 of the paper: expansion, output channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # stride 2 in the paper; small images keep their resolution here
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM = 32
FEATURES = 1280


def _convolution(
    norm: str, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution and its normalization, or a bias where there is none; padded so that stride 1 keeps the size."""
    bias, padding = norm == "none", kernel // 2
    convolution = nn.Conv2d(width_in, width_out, kernel, stride, padding=padding, groups=groups, bias=bias)
    return [convolution, normalization(norm, width_out, spatial=True) or nn.Identity()]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel 3x3, narrow by a 1x1 convolution; linear output.

    With stride 1 a shortcut is added: the identity, or a 1x1 convolution with BatchNorm where the widths differ.

    Args:
        width_in: Input channels.
        width_out: Output channels.
        expansion: Width of the middle, as a multiple of ``width_in``.
        stride: Stride of the 3x3 convolution, 1 or 2.
        norm: See :func:`~fedgh.model.layers.normalization`.
    """

    def __init__(self, width_in: int, width_out: int, expansion: int, stride: int, norm: str) -> None:
        super().__init__()
        middle = expansion * width_in
        self.residual = nn.Sequential(
            *_convolution(norm, width_in, middle, kernel=1),
            nn.ReLU(),
            *_convolution(norm, middle, middle, kernel=3, stride=stride, groups=middle),
            nn.ReLU(),
            *_convolution(norm, middle, width_out, kernel=1),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1:
            differs = width_in != width_out
            self.shortcut = (
                nn.Sequential(*_convolution(norm, width_in, width_out, kernel=1)) if differs else nn.Identity()
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width_out, ceil(h / stride), ceil(w / stride))``."""
        residual: Tensor = self.residual(x)
        return residual if self.shortcut is None else residual + self.shortcut(x)


class MobileNetV2(Model):
    """Inverted residuals in the layout for 32x32 and 64x64 images.

    The stem and the second stage have stride 1, activations are plain ReLU, and a 1x1 convolution to 1,280 channels is
    averaged over all positions. 2,412,212 parameters for 100 classes, 2,540,312 for 200; 57 BatchNorm layers, whose
    buffers hold 35,145 numbers.

    Args:
        input_shape: Channels, height and width. Three of the stages halve the size, so images of up to 8 x 8 pixels
            end as a single position, where BatchNorm cannot train on a batch of one image.
        num_outputs: Width of the head, the number of classes.
        norm: ``batch``, ``group`` (no running statistics) or ``none`` (a bias instead); runs stored before the setting
            existed go on with its default.

    Raises:
        ConfigurationError: If the image shape is not three positive numbers.

    Reference:
        Sandler et al., CVPR 2018.
    Departures:
        Those of the CIFAR layout in common use, which FedGH's experiments follow: strides as above, ReLU for ReLU6, the
        widening convolution kept at expansion 1, and a shortcut with convolution where widths differ at stride 1. No
        dropout; PyTorch's default initialisation.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, norm: str = "batch") -> None:
        super().__init__()
        (depth, _, _), num_outputs = require_images(input_shape, num_outputs, "mobilenet_v2")
        layers = [*_convolution(norm, depth, STEM, kernel=3), nn.ReLU()]
        width = STEM
        for expansion, width_out, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(width, width_out, expansion, stride if block == 0 else 1, norm))
                width = width_out
        layers += [*_convolution(norm, width, FEATURES, kernel=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to features ``(batch, 1280)``."""
        pooled: Tensor = self.body(x)
        return pooled
