"""Well-known sets that come either as torchvision's official files or as Parquet; what the two have in common."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.base import Augment, ImageDataset, train_rows
from fedgh.dataset.image_decoding import decode_splits
from fedgh.dataset.parquet_source import ParquetSplit, check_labels, read_splits

Splits = tuple[Tensor, Tensor, Tensor, Tensor]
"""Train images, train labels, test images, test labels."""


@dataclass(frozen=True)
class PublishedSet:
    """What is known of a set before any file is read; the same for both sources.

    Attributes:
        name: Name of the set and of its config.
        image_shape: Channels, height, width.
        class_names: In the order of the published labels.
        mean: Per channel on the [0, 1] scale.
        std: Per channel on the [0, 1] scale.
        label_columns: Accepted names of the label column in Parquet files.
        torchvision_class: Name in ``torchvision.datasets``.
        torchvision_folder: Folder below ``root`` where torchvision keeps the files.
        torchvision_splits: What its class is told for the train and for the test split.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_columns: tuple[str, ...]
    torchvision_class: str
    torchvision_folder: str
    torchvision_splits: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})


def load_published(
    published: PublishedSet,
    root: str | Path,
    source: str,
    download: bool,
    train_fraction: float,
    augmentation: Augment | None,
) -> ImageDataset:
    """Load a published set from either source, with its official splits.

    Args:
        published: Which set.
        root: Folder with torchvision's files, or the folder which directly holds the Parquet files.
        source: ``"torchvision"`` or ``"parquet"``.
        download: Whether torchvision may download missing files; not with Parquet.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.
            Other Parquet images are not decoded.
        augmentation: Applied to training batches, or ``None``.

    Raises:
        ConfigurationError: If ``source`` is unknown, or ``download`` is asked of Parquet.
        DataError: If files are missing, damaged, or hold another data set.
    """
    train_images, train_labels, test_images, test_labels = _read(published, root, source, download, train_fraction)
    shape = tuple(train_images.shape[1:])
    if shape != published.image_shape:
        raise DataError(
            f"dataset {published.name}: images under {root} are {shape} (channels, height, width), expected "
            f"{published.image_shape}; dataset.root points at another set. For sets of your own use dataset=parquet."
        )
    return ImageDataset(
        name=published.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=published.class_names,
        mean=published.mean,
        std=published.std,
        augmentation=augmentation,
    )


def _read(published: PublishedSet, root: str | Path, source: str, download: bool, train_fraction: float) -> Splits:
    if source == "torchvision":
        return _read_torchvision(published, Path(root).expanduser(), download, train_fraction)
    if source != "parquet":
        raise ConfigurationError(f"dataset.source must be torchvision or parquet, got {source!r}.")
    if download:
        raise ConfigurationError(
            "dataset.download=true works with dataset.source=torchvision only; "
            "for dataset.source=parquet copy the files yourself and type dataset.download=false."
        )
    return _read_parquet(published, root, train_fraction)


def _read_torchvision(published: PublishedSet, root: Path, download: bool, train_fraction: float) -> Splits:
    import torchvision.datasets

    reader: Any = getattr(torchvision.datasets, published.torchvision_class)
    folder = root / published.torchvision_folder
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        of_train, of_test = published.torchvision_splits
        train, test = reader(root=root, download=download, **of_train), reader(root=root, download=False, **of_test)
    except (RuntimeError, OSError, ValueError, EOFError, AssertionError, KeyError, pickle.UnpicklingError) as error:
        for place in made:  # by torchvision, before it fetches anything
            with suppress(OSError):  # not made, or not empty
                place.rmdir()
        raise DataError(_missing_files(published, root, error, download)) from error
    images, labels = _tensors(train)
    keep = torch.from_numpy(train_rows(labels.numpy(), train_fraction))
    return images[keep], labels[keep], *_tensors(test)


def _missing_files(published: PublishedSet, root: Path, error: Exception, download: bool) -> str:
    folder = root / published.torchvision_folder
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    state = "which does not exist" if found is None else f"which holds {', '.join(found) or 'nothing'}"
    cause = " ".join(str(error).split()) or type(error).__name__  # torchvision lists its mirrors on lines of their own
    if download:
        return (
            f"dataset {published.name}: its files could not be fetched into {folder} "
            f"({cause}); "
            f"is there a network here? Else copy the folder {published.torchvision_folder} from a machine that has "
            "one, and type dataset.download=false."
        )
    return (
        f"dataset {published.name}: looked for torchvision's files in {folder}, {state}; they are missing, half copied "
        f"or damaged ({cause}). Type dataset.download=true to fetch them, "
        f"dataset.root=<folder which holds {published.torchvision_folder}>, or dataset.source=parquet with "
        "dataset.root=<folder which directly holds train-*.parquet>."
    )


def _tensors(split: Any) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and labels of a torchvision set: (N, H, W), (N, H, W, 3) or (N, 3, H, W)."""
    images = torch.as_tensor(split.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = split.labels if hasattr(split, "labels") else split.targets  # SVHN's word
    return images, torch.as_tensor(labels, dtype=torch.int64)


def _read_parquet(published: PublishedSet, root: str | Path, train_fraction: float) -> Splits:
    train, test = read_splits(root, None, published.label_columns)
    for split in (train, test):
        _check_class_order(published, root, split)
        check_labels(split, len(published.class_names))
    train = train.take(train_rows(train.labels, train_fraction))
    train_images, test_images = decode_splits([train, test], None)
    return train_images, torch.from_numpy(train.labels), test_images, torch.from_numpy(test.labels)


def _check_class_order(published: PublishedSet, root: str | Path, split: ParquetSplit) -> None:
    """Compare the files' class names with the published order; a spelling of its own is let pass, a swap is not."""
    if split.class_names is None:
        return
    known = {_plain(name): label for label, name in enumerate(published.class_names)}
    moved = [name for label, name in enumerate(split.class_names) if known.get(_plain(name), label) != label]
    if moved or len(split.class_names) != len(published.class_names):
        raise DataError(
            f"dataset {published.name}: the files in {root} name {len(split.class_names)} classes"
            f"{f', {moved[0]!r} at another place' if moved else ''}; expected the {len(published.class_names)} "
            f"published ones in their order ({', '.join(published.class_names[:3])}, ...). "
            "dataset.root points at another set; for sets of your own use dataset=parquet."
        )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
