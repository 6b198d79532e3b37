"""MNIST in domains: every digit turned by one of several angles, upright clients beside clients upside down."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import numpy_generator
from fedgh.dataset.base import Augment, ImageDataset, channel_statistics
from fedgh.dataset.mnist import MNIST
from fedgh.dataset.published import load_published

BATCH = 2000


def load(
    root: str | Path,
    source: str,
    download: bool,
    num_rotations: int,
    step: float,
    image_size: int | None,
    train_fraction: float,
    augmentation: Augment | None,
) -> ImageDataset:
    """Load MNIST with every image, of both splits, in one of ``num_rotations`` domains.

    Which image is in which domain is drawn once and for all, whatever the experiment's seed: of each split as many in
    every domain, give or take one. Domain d is turned counter-clockwise by ``d step`` degrees, by bilinear
    interpolation; outside is black.

    Args:
        root: See :func:`fedgh.dataset.published.load_published`, as ``source``, ``download`` and ``train_fraction``.
        source: See there.
        download: See there.
        num_rotations: Number of domains.
        step: Degrees between two domains.
        image_size: Height and width in pixels that images are brought to before they are turned; ``None`` for 28.
        train_fraction: See there.
        augmentation: Applied to training batches, or ``None``.

    Raises:
        ConfigurationError: If ``num_rotations`` or ``image_size`` is not positive.
        DataError: See there.

    Reference:
        Rotated MNIST of Ghifary et al., ICCV 2015, which has six domains, 15 degrees apart.
    Departures:
        Theirs holds the same 1,000 images in every domain; here no two domains share an image.
    """
    if num_rotations < 1 or (image_size is not None and image_size < 1):
        raise ConfigurationError(
            f"dataset.num_rotations and dataset.image_size must be at least 1, got {num_rotations} and {image_size}; "
            "try 10 and null."
        )
    whole = load_published(MNIST, root, source, download, train_fraction, augmentation)
    found = [
        _turned(images, num_rotations, step, image_size, split)
        for images, split in ((whole.train_images, "train"), (whole.test_images, "test"))
    ]
    (train, domains), (test, test_domains) = found
    mean, std = channel_statistics(train)
    return replace(
        whole,
        name="rotated_mnist",
        train_images=train,
        test_images=test,
        domains=domains,
        test_domains=test_domains,
        mean=mean,
        std=std,
    )


def _turned(images: Tensor, number: int, step: float, size: int | None, split: str) -> tuple[Tensor, Tensor]:
    """Return the turned images and the domain of each, ``(N,)`` int64."""
    generator = numpy_generator(0, f"rotated_mnist_{split}")
    domains = torch.from_numpy(generator.permutation(len(images)) % number)
    turned = [
        rotated(batch, here * step, size)
        for batch, here in zip(torch.split(images, BATCH), torch.split(domains, BATCH), strict=True)
    ]
    return torch.cat(turned), domains


def rotated(images: Tensor, degrees: Tensor, size: int | None = None) -> Tensor:
    """Turn images counter-clockwise.

    Args:
        images: uint8 (N, C, H, W).
        degrees: ``(N,)``.
        size: Height and width to bring images to first; ``None`` for their own.

    Returns:
        uint8, of the same shape but for the size.
    """
    pixels = images.float()
    if size is not None and size != images.shape[-1]:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    angle = degrees.double() * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # where each pixel comes from; the vertical axis points down
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).float()
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    turned = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)
