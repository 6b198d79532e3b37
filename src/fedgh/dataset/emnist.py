"""EMNIST: digits and letters of 28x28 grey levels (Cohen et al., 2017); by writers see ``dataset=femnist``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import Augment, ImageDataset
from fedgh.dataset.published import PublishedSet, load_published

CLASSES = {
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "balanced": digits + ascii_uppercase + "abdefghnqrt",  # letters whose two forms look alike share a class
    "digits": digits,
}


def load(
    root: str | Path,
    split: str,
    source: str,
    download: bool,
    train_fraction: float,
    augmentation: Augment | None,
) -> ImageDataset:
    """Load one of its splits, upright; other arguments and errors as in :func:`load_published`.

    Args:
        root: See there.
        split: ``byclass`` (62 classes, 697,932 training images, skewed), ``balanced`` (47, 112,800) or ``digits``.
        source: See there; Parquet files are taken as they are.
        download: See there.
        train_fraction: See there.
        augmentation: See there.

    Raises:
        ConfigurationError: If ``split`` is another word.
    """
    if split not in CLASSES:
        raise ConfigurationError(f"dataset.split must be one of {', '.join(CLASSES)}, got {split!r}.")
    published = PublishedSet(
        name="emnist",
        image_shape=(1, 28, 28),
        class_names=tuple(CLASSES[split]),
        mean=(0.1736,),
        std=(0.3317,),
        label_columns=("label", "character"),
        torchvision_class="EMNIST",
        torchvision_folder="EMNIST/raw",
        torchvision_splits=({"split": split, "train": True}, {"split": split, "train": False}),
    )
    whole = load_published(published, root, source, download, train_fraction, augmentation)
    if source == "parquet":
        return whole
    # its files have the digits lie on their side
    train, test = (images.transpose(2, 3).contiguous() for images in (whole.train_images, whole.test_images))
    return replace(whole, train_images=train, test_images=test)
