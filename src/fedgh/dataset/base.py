"""What every data set becomes: two uint8 splits in memory, their labels, names, statistics and augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.core.seeding import numpy_generator

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps uint8 images (B, C, H, W) and a CPU generator to new uint8 images of the same shape."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """An image classification set with its official splits, held as whole tensors.

    Attributes:
        name: Short name for logs.
        train_images: uint8 (N, C, H, W); the only split that is ever partitioned among clients.
        train_labels: int64 (N,), each in ``0 .. num_classes - 1``.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,).
        class_names: One per class, in the order of the labels.
        mean: Per channel, of the training images scaled to [0, 1].
        std: Per channel standard deviation on the same scale, positive.
        augmentation: Applied to training batches before normalisation; ``None`` for none.

    Raises:
        DataError: If shapes, types, labels or statistics do not fit together; the message names the split and row.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augment | None

    def __post_init__(self) -> None:
        _check_split(self.name, "train", self.train_images, self.train_labels, self.num_classes)
        _check_split(self.name, "test", self.test_images, self.test_labels, self.num_classes)
        train_shape, test_shape = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        if train_shape != test_shape:
            raise DataError(
                f"dataset {self.name}: train images are {_size(train_shape)} but test images are {_size(test_shape)} "
                "(channels x height x width); both splits must agree, so check that they come from the same data set."
            )
        _check_statistics(self.name, train_shape[0], self.mean, self.std)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of shapes, labels and images of both splits.

        A checkpoint keeps it to refuse to resume on other data. The device does not change it.
        """
        digest = hashlib.sha256()
        for tensor in (self.train_labels, self.test_labels, self.train_images, self.test_images):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()[:16]

    @cached_property
    def _scale_shift(self) -> tuple[Tensor, Tensor]:
        """``1 / (255 std)`` and ``-mean / std`` as float32 (C, 1, 1), computed in double precision."""
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        device = self.train_images.device
        scale, shift = 1.0 / (255.0 * std), -mean / std
        return scale.float().view(-1, 1, 1).to(device), shift.float().view(-1, 1, 1).to(device)

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(images / 255 - mean) / std`` as float32, computed as ``images * scale + shift``.

        Product and sum are rounded separately, so an image's result is the same bits in any batch and on any device
        (a hardware fused multiply-add would differ between vectorised and remaining elements).

        Args:
            images: uint8 (B, C, H, W) on this data set's device; left as they were.
        """
        scale, shift = self._scale_shift
        return images.float().mul_(scale).add_(shift)

    @cached_property
    def normalized_test_images(self) -> Tensor:
        """The test split as the model sees it, float32 (M, C, H, W); kept, since every evaluation reads it."""
        return self.normalize(self.test_images)

    def to(self, device: torch.device | str) -> ImageDataset:
        """Return the same data set with its four tensors on ``device``; a fingerprint already known is kept."""
        moved = replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )
        if "fingerprint" in self.__dict__:
            moved.__dict__["fingerprint"] = self.fingerprint
        return moved


def take_fraction(dataset: ImageDataset, fraction: float) -> ImageDataset:
    """Keep a fixed stratified fraction of the train split, for quick presets; the test split stays whole.

    Per class ``max(1, round(fraction * n_c))`` examples are kept, in their original order. The choice does not depend
    on the experiment's seed, and a smaller fraction is a subset of a larger one.

    Args:
        dataset: Data set to thin; left as it was.
        fraction: In (0, 1]; 1 returns ``dataset`` itself.

    Raises:
        ConfigurationError: If ``fraction`` is outside (0, 1].
    """
    rows = train_rows(dataset.train_labels.cpu().numpy(), fraction)
    if len(rows) == len(dataset.train_labels):
        return dataset
    keep = torch.from_numpy(rows).to(dataset.train_labels.device)
    return replace(dataset, train_images=dataset.train_images[keep], train_labels=dataset.train_labels[keep])


def train_rows(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the sorted rows that :func:`take_fraction` keeps, for loaders that need not decode the others.

    Args:
        labels: int64 (N,) of the whole train split.
        fraction: In (0, 1]; 1 gives every row.

    Raises:
        ConfigurationError: If ``fraction`` is outside (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigurationError(
            f"dataset.train_fraction must be in (0, 1], got {fraction}; try 0.1 for a quick run or 1.0 for all."
        )
    return np.arange(len(labels)) if fraction == 1.0 else stratified_rows(labels, fraction, "train_fraction")


def stratified_rows(labels: np.ndarray, fraction: float, purpose: str) -> np.ndarray:
    """Return sorted row numbers holding ``fraction`` of each class, at least one of each.

    Args:
        labels: int64 (N,).
        fraction: In (0, 1].
        purpose: Address of the draw (seed 0, one stream per class); see :mod:`fedgh.core.seeding`.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = max(1, int(fraction * len(rows) + 0.5))
        generator = numpy_generator(0, purpose, client_id=int(label))
        chosen.append(rows[generator.permutation(len(rows))[:count]])
    return np.sort(np.concatenate(chosen))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the exact per-channel mean and population standard deviation of uint8 (N, C, H, W), on the [0, 1] scale.

    Computed from each channel's histogram, so the order of the images cannot change it.
    """
    levels = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).double().cpu()
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        means.append(mean / 255.0)
        deviations.append(float((share * (levels - mean) ** 2).sum()) ** 0.5 / 255.0)
    return tuple(means), tuple(deviations)


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def _check_split(name: str, split: str, images: Tensor, labels: Tensor, num_classes: int) -> None:
    where = f"dataset {name}, {split} split"
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise DataError(
            f"{where}: images must be uint8 of shape (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}."
        )
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) != len(images):
        raise DataError(
            f"{where}: labels must be int64 of shape ({len(images)},), one per image, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if images.numel() == 0:
        raise DataError(f"{where} is empty (shape {tuple(images.shape)}); copy the data set again, or check its files.")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}, row {row}: label {int(labels[row])} is outside the classes 0 to {num_classes - 1} "
            f"({len(wrong)} such labels in all); check the labels, or that all {num_classes} class names are right."
        )


def _check_statistics(name: str, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"dataset {name}: images have {channels} channel(s), so mean and std need {channels} number(s) each, "
            f"got {len(mean)} and {len(std)}; set dataset.mean and dataset.std to one number per channel."
        )
    if not all(np.isfinite(mean)) or not all(np.isfinite(value) and value > 0 for value in std):
        raise DataError(
            f"dataset {name}: mean must be finite and std positive, got mean {tuple(mean)} and std {tuple(std)}; "
            "a channel of one single colour has std 0, set dataset.std=[1.0] there."
        )
