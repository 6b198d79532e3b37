"""Digits in three domains: MNIST, USPS, and those bundled with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.dataset import digits, mnist, parquet
from fedgh.dataset.base import Augment, ImageDataset, channel_statistics, take_fraction


def load(
    mnist_root: str | Path,
    mnist_source: str,
    usps_root: str | Path,
    image_size: int,
    per_domain: int | None,
    train_fraction: float,
    augmentation: Augment | None,
) -> ImageDataset:
    """Load all three, in this order of domains, as grey images of one size.

    Args:
        mnist_root: Folder of MNIST; see :func:`fedgh.dataset.published.load_published`.
        mnist_source: ``torchvision`` or ``parquet``.
        usps_root: Folder which directly holds the Parquet files of USPS.
        image_size: Height and width that all are brought to (bilinear).
        per_domain: So many training images of each domain at most, as a fixed stratified draw; ``None`` for all.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
        augmentation: Applied to training batches, or ``None``.

    Raises:
        ConfigurationError: If ``image_size`` or ``per_domain`` is not positive.
        DataError: If files are missing or wrong.

    Reference:
        The digits of FedBN (Li et al., ICLR 2021), which has SVHN, MNIST-M and SynthDigits besides, 743 images a
        domain; scikit-learn's are ours.
    """
    if image_size < 1 or (per_domain is not None and per_domain < 1):
        raise ConfigurationError(
            f"dataset.image_size and dataset.per_domain must be at least 1, got {image_size} and {per_domain}; try 28 "
            "and null."
        )
    usps = parquet.load(usps_root, "usps", None, None, None, None, None, 1.0, None)
    sets = [mnist.load(mnist_root, mnist_source, False, 1.0, None), usps, digits.load(1.0, None)]
    if per_domain is not None:
        sets = [take_fraction(one, min(1.0, per_domain / len(one.train_labels))) for one in sets]
    train, test = ([one.train_images for one in sets], [one.test_images for one in sets])
    images = _resized(train, image_size)
    mean, std = channel_statistics(images)
    whole = ImageDataset(
        name="digits_domains",
        train_images=images,
        train_labels=torch.cat([one.train_labels for one in sets]),
        test_images=_resized(test, image_size),
        test_labels=torch.cat([one.test_labels for one in sets]),
        class_names=tuple("0123456789"),
        mean=mean,
        std=std,
        augmentation=augmentation,
        domains=_numbered(train),
        test_domains=_numbered(test),
    )
    return take_fraction(whole, train_fraction)


def _resized(splits: Sequence[Tensor], size: int) -> Tensor:
    resized = [F.interpolate(one.float(), (size, size), mode="bilinear", antialias=True) for one in splits]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def _numbered(splits: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(one),), domain) for domain, one in enumerate(splits)])
