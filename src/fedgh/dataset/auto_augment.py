"""The operations and the CIFAR-10 policy of AutoAugment, each operation once, on a batch with per-image magnitudes.

Every operation returns the same bytes as torchvision's for the same image and magnitude: point operations repeat its
float32 arithmetic one rounding at a time, which no device may reorder, and the five geometric ones look source pixels
up in tables that torchvision itself fills on the CPU, once per magnitude and image size.

Reference:
    Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019; torchvision's
    ``AutoAugment(AutoAugmentPolicy.CIFAR10)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 10
SIGNED = frozenset(
    {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
)

Operation = Callable[[Tensor, Tensor], Tensor]
"""Takes uint8 images (B, C, H, W) and signed magnitudes float64 (B,) on the CPU; returns new images."""

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
def source_pixels(operation: str, magnitude: float, height: int, width: int, device: torch.device) -> Tensor:
    """Return which pixel each pixel of the result is copied from, int64 (height * width,).

    Value ``1 + i`` means pixel ``i`` in row-major order, 0 means outside the image. torchvision warps an image whose
    grey levels are these numbers (exact in float32 up to 2^24 pixels), on the CPU whatever ``device`` is.
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
    table: Tensor = warped.long().view(-1).to(device)
    return table


def warp(images: Tensor, magnitude: Tensor, operation: str) -> Tensor:
    """Shear, translate or rotate each image by its own signed magnitude; nearest pixel, outside is 0."""
    batch, channels, height, width = images.shape
    values, which = torch.unique(magnitude, return_inverse=True)
    tables = [source_pixels(operation, value, height, width, images.device) for value in values.tolist()]
    source = torch.stack(tables).index_select(0, which.to(images.device))  # (batch, pixels)
    padded = F.pad(images.flatten(2), (1, 0))  # the leading zero is what "outside" points at
    return padded.gather(2, source[:, None].expand(batch, channels, -1)).view(images.shape)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Scale by ``1 + magnitude``: blend with black."""
    return _blend(images, torch.zeros((), device=images.device), magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the image's own grey version; an image of one channel stays as it is."""
    return images.clone() if images.shape[1] == 1 else _blend(images, _grey(images), magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the image's mean grey level."""
    grey = images if images.shape[1] == 1 else _grey(images)
    total = grey.sum(dim=(-3, -2, -1), keepdim=True).float()  # integers: exact in any order below 2^24
    pixels = torch.full_like(total, grey.shape[-2] * grey.shape[-1])  # a scalar divisor would multiply on CUDA
    return _blend(images, total / pixels, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with a smoothed version: 3x3 weights 1, centre 5, over 13; the border stays as it is."""
    if min(images.shape[-2:]) <= 2:
        return images.clone()
    wide = images.short()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = images.clone()
    # A thirteenth is never half-way, so float rounding cannot decide which way round() goes.
    smooth[..., 1:-1, 1:-1] = (total.float() * (1.0 / 13.0)).round().to(torch.uint8)
    return _blend(images, smooth, magnitude)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest ``magnitude`` bits of every value."""
    mask = (256 - 2 ** (8 - magnitude.long())).to(torch.uint8)
    return images & _per_image(mask, images)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert values at or above the threshold ``magnitude``."""
    threshold = _per_image(magnitude.ceil().to(torch.uint8), images)
    return images ^ (images >= threshold).to(torch.uint8).neg_()  # -1 is 255: all bits change


def auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:  # noqa: ARG001
    """Stretch each channel to the full range; a channel of one level stays as it is."""
    low = images.amin(dim=(-2, -1), keepdim=True).float()
    high = images.amax(dim=(-2, -1), keepdim=True).float()
    flat = high == low
    scale = torch.where(flat, 1.0, 255 * (high - low).reciprocal())
    return ((images - low.masked_fill(flat, 0.0)) * scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:  # noqa: ARG001
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


def invert(images: Tensor, magnitude: Tensor) -> Tensor:  # noqa: ARG001
    """Return ``255 - images``."""
    return 255 - images


def _warp_as(operation: str) -> Operation:
    return lambda images, magnitude: warp(images, magnitude, operation)


OPERATIONS: dict[str, Operation] = {
    "ShearX": _warp_as("ShearX"),
    "ShearY": _warp_as("ShearY"),
    "TranslateX": _warp_as("TranslateX"),
    "TranslateY": _warp_as("TranslateY"),
    "Rotate": _warp_as("Rotate"),
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
}


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).to(images.device)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(-3)


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """Return ``(1 + magnitude) images - magnitude other``, clamped; both factors rounded from double as torchvision."""
    factor = 1.0 + magnitude
    mixed = _per_image(factor.float(), images) * images
    return mixed.add_(_per_image((1.0 - factor).float(), images) * other).clamp_(0, 255).to(torch.uint8)
