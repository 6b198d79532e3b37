"""The operations and the CIFAR-10 policy of AutoAugment, each kind of operation once, on a batch of images.

What an operation does to an image is two numbers, worked out on the host: the device gets them all in one copy. Every
operation returns the same bytes as torchvision's for the same image and magnitude: point operations repeat its
float32 arithmetic one rounding at a time, which no device may reorder, and the five geometric ones look source pixels
up in tables that torchvision itself fills on the CPU, once per magnitude and image size.

Reference:
    Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019; torchvision's
    ``AutoAugment(AutoAugmentPolicy.CIFAR10)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 10
SIGNED = frozenset(
    {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
)

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Takes uint8 images (B, C, H, W) and two numbers for each of them, float32 (B, 2); returns new images."""
Numbers = tuple[float, float]

Step = tuple[str, float, int | None]
"""Name of an operation, probability of applying it, magnitude bin (``None`` where it has no magnitude)."""

CIFAR10_POLICY: tuple[tuple[Step, Step], ...] = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)


@lru_cache(maxsize=64)
def magnitudes(operation: str, height: int, width: int) -> Tensor:
    """Return the ten unsigned magnitudes of an operation, float64 (10,): zeros where it has none.

    Shears are tangents, translations pixels (truncated to whole ones when applied), rotations degrees, blends the
    distance of the factor from 1, Posterize bits kept, Solarize a grey level.
    """
    top = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150.0 / 331.0 * width,
        "TranslateY": 150.0 / 331.0 * height,
        "Rotate": 30.0,
        "Brightness": 0.9,
        "Color": 0.9,
        "Contrast": 0.9,
        "Sharpness": 0.9,
    }
    if operation == "Posterize":
        return (8 - (torch.arange(NUM_BINS) / ((NUM_BINS - 1) / 4)).round()).double()
    ends = (255.0, 0.0) if operation == "Solarize" else (0.0, top.get(operation, 0.0))
    return torch.linspace(*ends, NUM_BINS, dtype=torch.float32).double()  # rounded as torchvision's


@lru_cache(maxsize=512)
def source_pixels(operation: str, magnitude: float, height: int, width: int) -> Tensor:
    """Return which pixel each pixel of the result is copied from, int64 (height * width,) on the CPU.

    Value ``1 + i`` means pixel ``i`` in row-major order, 0 means outside the image. torchvision warps an image whose
    grey levels are these numbers (exact in float32 up to 2^24 pixels).
    """
    from torchvision.transforms import functional

    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    if operation == "Rotate":
        warped = functional.rotate(numbers, magnitude)
    elif operation.startswith("Shear"):
        degrees = math.degrees(math.atan(magnitude))
        shear = [degrees, 0.0] if operation == "ShearX" else [0.0, degrees]
        warped = functional.affine(numbers, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
    else:
        pixels = int(magnitude)
        translate = [pixels, 0] if operation == "TranslateX" else [0, pixels]
        warped = functional.affine(numbers, angle=0.0, translate=translate, scale=1.0, shear=[0.0, 0.0])
    table: Tensor = warped.long().view(-1)
    return table


_tables: dict[tuple[int, int], dict[tuple[str, float], int]] = {}


def table_of(operation: str, magnitude: float, height: int, width: int) -> int:
    """Return the row of :func:`tables` that belongs to an operation and a magnitude."""
    known = _tables.setdefault((height, width), {})
    return known.setdefault((operation, magnitude), len(known))


@lru_cache(maxsize=8)
def tables(height: int, width: int, known: int, device: torch.device) -> Tensor:
    """Return the first ``known`` of :func:`source_pixels` asked for so far, int64 (known, height * width)."""
    keys = list(_tables[height, width])[:known]
    return torch.stack([source_pixels(operation, value, height, width) for operation, value in keys]).to(device)


def warp(images: Tensor, numbers: Tensor) -> Tensor:
    """Shear, translate or rotate each image by its own table; nearest pixel, outside is 0."""
    batch, channels, height, width = images.shape
    known = tables(height, width, len(_tables[height, width]), images.device)
    source = known.index_select(0, numbers[:, 0].long())  # (batch, pixels)
    padded = F.pad(images.flatten(2), (1, 0))  # the leading zero is what "outside" points at
    return padded.gather(2, source[:, None].expand(batch, channels, -1)).view(images.shape)


def brightness(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(images, torch.zeros((), device=images.device), numbers)


def color(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend with the image's own grey version; an image of one channel stays as it is."""
    return images.clone() if images.shape[1] == 1 else _blend(images, _grey(images), numbers)


def contrast(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend with the image's mean grey level."""
    grey = images if images.shape[1] == 1 else _grey(images)
    total = grey.sum(dim=(-3, -2, -1), keepdim=True).float()  # integers: exact in any order below 2^24
    pixels = torch.full_like(total, grey.shape[-2] * grey.shape[-1])  # a scalar divisor would multiply on CUDA
    return _blend(images, total / pixels, numbers)


def sharpness(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend with a smoothed version: 3x3 weights 1, centre 5, over 13; the border stays as it is."""
    if min(images.shape[-2:]) <= 2:
        return images.clone()
    wide = images.short()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = images.clone()
    # A thirteenth is never half-way, so float rounding cannot decide which way round() goes.
    smooth[..., 1:-1, 1:-1] = (total.float() * (1.0 / 13.0)).round().to(torch.uint8)
    return _blend(images, smooth, numbers)


def posterize(images: Tensor, numbers: Tensor) -> Tensor:
    """Keep the bits of every value that the first number has."""
    return images & _per_image(numbers[:, 0].to(torch.uint8))


def solarize(images: Tensor, numbers: Tensor) -> Tensor:
    """Invert values at or above the first number."""
    threshold = _per_image(numbers[:, 0].to(torch.uint8))
    return images ^ (images >= threshold).to(torch.uint8).neg_()  # -1 is 255: all bits change


def auto_contrast(images: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG001
    """Stretch each channel to the full range; a channel of one level stays as it is."""
    low = images.amin(dim=(-2, -1), keepdim=True).float()
    high = images.amax(dim=(-2, -1), keepdim=True).float()
    flat = high == low
    scale = torch.where(flat, 1.0, 255 * (high - low).reciprocal())
    return ((images - low.masked_fill(flat, 0.0)) * scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG001
    """Equalise the histogram of each channel of each image."""
    batch, channels, height, width = images.shape
    levels = images.reshape(batch * channels, -1).long()
    counts = torch.zeros(batch * channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, levels, torch.ones((), dtype=torch.int64, device=images.device).expand_as(levels))
    brightest = counts.gather(1, levels.amax(dim=1, keepdim=True))
    step = torch.div(height * width - brightest, 255, rounding_mode="floor")
    divisor = step.clamp_min(1)
    before = counts.cumsum(1) - counts  # pixels darker than each level
    table = torch.div(before + divisor // 2, divisor, rounding_mode="floor").clamp_(0, 255)
    table[:, 0] = 0
    table = torch.where(step == 0, torch.arange(256, device=images.device), table).to(torch.uint8)
    return table.gather(1, levels).view(images.shape)


def invert(images: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG001
    """Return ``255 - images``."""
    return 255 - images


@dataclass(frozen=True)
class Operation:
    """One of AutoAugment's operations.

    Attributes:
        kernel: What it does to a batch; operations of one kernel are one launch.
        numbers: ``numbers(magnitude, height, width)``, what the kernel wants to know of an image.
    """

    kernel: Kernel
    numbers: Callable[[float, int, int], Numbers]

    def __call__(self, images: Tensor, magnitude: Tensor) -> Tensor:
        """Return new images, each with its own signed magnitude, float64 (B,) on the CPU."""
        numbers = [self.numbers(value, *images.shape[-2:]) for value in magnitude.tolist()]
        return self.kernel(images, torch.tensor(numbers, dtype=torch.float32).to(images.device))


def _warped(operation: str) -> Operation:
    return Operation(warp, lambda magnitude, *size: (float(table_of(operation, magnitude, *size)), 0.0))


def _shares(magnitude: float, *_: int) -> Numbers:
    """Return how much of the image and of the other image a blend takes, to be rounded once as in torchvision."""
    factor = 1.0 + magnitude
    return factor, 1.0 - factor


def _nothing(*_: float) -> Numbers:
    return 0.0, 0.0


OPERATIONS: dict[str, Operation] = {
    "ShearX": _warped("ShearX"),
    "ShearY": _warped("ShearY"),
    "TranslateX": _warped("TranslateX"),
    "TranslateY": _warped("TranslateY"),
    "Rotate": _warped("Rotate"),
    "Brightness": Operation(brightness, _shares),
    "Color": Operation(color, _shares),
    "Contrast": Operation(contrast, _shares),
    "Sharpness": Operation(sharpness, _shares),
    "Posterize": Operation(posterize, lambda bits, *_: (float(256 - 2 ** (8 - int(bits))), 0.0)),
    "Solarize": Operation(solarize, lambda threshold, *_: (float(math.ceil(threshold)), 0.0)),
    "AutoContrast": Operation(auto_contrast, _nothing),
    "Equalize": Operation(equalize, _nothing),
    "Invert": Operation(invert, _nothing),
}
KERNELS: tuple[Kernel, ...] = tuple(dict.fromkeys(operation.kernel for operation in OPERATIONS.values()))


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(-3)


def _blend(images: Tensor, other: Tensor, numbers: Tensor) -> Tensor:
    """Return the first number times the images plus the second times the others, clamped."""
    mine, others = numbers.unbind(1)
    return (_per_image(mine) * images).add_(_per_image(others) * other).clamp_(0, 255).to(torch.uint8)
