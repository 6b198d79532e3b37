"""SVHN: 73,257 + 26,032 house numbers of 32x32 in colour, ten classes (Netzer et al., 2011)."""

from __future__ import annotations

from pathlib import Path

from fedgh.dataset.base import Augment, ImageDataset
from fedgh.dataset.published import PublishedSet, load_published

SVHN = PublishedSet(
    name="svhn",
    image_shape=(3, 32, 32),
    class_names=tuple("0123456789"),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    label_columns=("label",),
    torchvision_class="SVHN",
    torchvision_folder="",
    torchvision_splits=({"split": "train"}, {"split": "test"}),
)


def load(
    root: str | Path, source: str, download: bool, train_fraction: float, augmentation: Augment | None
) -> ImageDataset:
    """Load SVHN, cropped digits; arguments and errors as in :func:`fedgh.dataset.published.load_published`."""
    return load_published(SVHN, root, source, download, train_fraction, augmentation)
