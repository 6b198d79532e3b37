"""Encoded images (JPEG, PNG) to one uint8 tensor per split, on a pool of threads."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fedgh.core.errors import DataError
from fedgh.core.machine import usable_cores

ONE_IMAGE = 89_478_485
"""Pixels of one image at most, where Pillow begins to warn; pictures of a camera have 10 to 60 million."""

UNSUSPICIOUS = 500_000_000
"""Pixels of all images up to which nobody minds how small their files are."""

PIXELS_A_BYTE = 100
"""Beyond, pixels that a byte of their files may hold. Pictures have 1 to 20, what is made to fill a memory hundreds."""

PNG = b"\x89PNG\r\n\x1a\n"

TASK_IMAGES = 256
"""Images a thread decodes at a time; Pillow releases the interpreter lock while it decodes."""


@dataclass(frozen=True)
class EncodedSplit:
    """The images of one split before decoding.

    Attributes:
        images: One each: the bytes of an image file, or its path.
        labels: int64 (N,).
        where: Says where an image comes from, such as ``"train-00000-of-00001.parquet, row 7"``; for messages.
    """

    images: Sequence[bytes | Path]
    labels: np.ndarray
    where: Callable[[int], str]

    def take(self, rows: np.ndarray) -> Self:
        """Return the chosen rows as a split of their own; messages keep naming the original file and row."""
        return replace(
            self,
            images=[self.images[row] for row in rows],
            labels=self.labels[rows],
            where=lambda row: self.where(int(rows[row])),
        )


def decode_splits(splits: Sequence[EncodedSplit], image_size: int | None) -> list[Tensor]:
    """Decode splits together, since all their images must get the same size and number of channels.

    Args:
        splits: At least one image in all.
        image_size: Height and width to resize every image to (bilinear); ``None`` where all have one size already.

    Returns:
        One uint8 (N, C, H, W) a split. C is 1 if every image is greyscale; if any has colour, C is 3 and greyscale
        images repeat their only channel. Palettes become RGB, and transparency is dropped.

    Raises:
        DataError: If an image cannot be decoded, has 16 bits a channel, differs in size from the first one, or if there
            are more pixels than the files are pictures for; sizes are looked at before pixels are decoded.
    """
    budget = Budget()
    for split in splits:
        budget.look_ahead(split)
    decoded = [_decode(split, image_size, budget) for split in splits]
    first = next(image for images in decoded for image in images)
    color = any(image.ndim == 3 for images in decoded for image in images)
    return [_stack(images, split, first.shape[:2], color) for images, split in zip(decoded, splits, strict=True)]


class Budget:
    """What images may take when they are decoded, one by one and in all; a few kilobytes can ask for gigabytes."""

    def __init__(self) -> None:
        self._lock, self._pixels, self._bytes = Lock(), 0, 0

    def look_ahead(self, split: EncodedSplit) -> None:
        """Refuse a split for what the heads of its PNG files say, which costs nothing to read."""
        ahead = Budget()
        for row, source in enumerate(split.images):
            if isinstance(source, bytes) and source.startswith(PNG) and len(source) >= 24:
                width, height = struct.unpack(">II", source[16:24])
                ahead.spend(width, height, len(source), partial(split.where, row))

    def spend(self, width: int, height: int, num_bytes: int, where: Callable[[], str]) -> None:
        """Count one image before it is decoded.

        Args:
            width: In pixels.
            height: In pixels.
            num_bytes: Of its file.
            where: Says where it is; for messages.

        Raises:
            DataError: If it is too large, or all so far are for the size of their files.
        """
        with self._lock:
            self._pixels += width * height
            self._bytes += num_bytes
            pixels, size = self._pixels, self._bytes
        if width * height > ONE_IMAGE:
            raise DataError(
                f"{where()}: image of {height}x{width} pixels (height x width), more than {ONE_IMAGE:,} in all; make "
                "the images of the set smaller first."
            )
        if pixels > max(UNSUSPICIOUS, PIXELS_A_BYTE * size):
            raise DataError(
                f"{where()}: the images up to here have {pixels:,} pixels in {size:,} bytes, more than {PIXELS_A_BYTE} "
                "a byte, as no pictures have; a file of unknown origin may be made to fill the memory. Make the images "
                "of the set smaller first."
            )


def _size_of(source: bytes | Path) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _decode(split: EncodedSplit, image_size: int | None, budget: Budget) -> list[np.ndarray]:
    starts = range(0, len(split.images), TASK_IMAGES)
    with ThreadPoolExecutor(max_workers=min(32, usable_cores())) as pool:
        parts = pool.map(lambda start: _decode_task(split, start, image_size, budget), starts)
        return [image for part in parts for image in part]


def _decode_task(split: EncodedSplit, start: int, image_size: int | None, budget: Budget) -> list[np.ndarray]:
    rows = range(start, min(start + TASK_IMAGES, len(split.images)))
    return [_decode_one(split.images[row], split.where, row, image_size, budget) for row in rows]


def _decode_one(
    source: bytes | Path, where: Callable[[int], str], row: int, image_size: int | None, budget: Budget
) -> np.ndarray:
    """Return uint8 (H, W) of a greyscale image or (H, W, 3) of any other."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            budget.spend(*image.size, _size_of(source), lambda: where(row))
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{where(row)}: image of mode {image.mode} has more than 8 bits a channel, expected 8; "
                    "convert the data set to 8-bit images first."
                )
            upright = ImageOps.exif_transpose(image)  # as a camera was held, which viewers and the hub's loader heed
            plain = upright.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            if image_size is not None:
                plain = plain.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.asarray(plain)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where(row)}: image cannot be decoded ({_reason(error, source)}), expected a whole JPEG or PNG file; "
            "copy the file again from where you got it."
        ) from error


def _reason(error: Exception, source: bytes | Path) -> str:
    """Pillow's reason, without the memory address that it prints for images given as bytes."""
    unidentified = type(error).__name__ == "UnidentifiedImageError" and isinstance(source, bytes)
    return f"{len(source)} bytes of no known image format" if unidentified else str(error)  # type: ignore[arg-type]


def _stack(images: list[np.ndarray], split: EncodedSplit, size: tuple[int, ...], color: bool) -> Tensor:
    stacked = np.empty((len(images), 3 if color else 1, *size), dtype=np.uint8)
    for row, image in enumerate(images):
        if image.shape[:2] != size:
            raise DataError(
                f"{split.where(row)}: image of {image.shape[0]}x{image.shape[1]} pixels (height x width), but the "
                f"first image of the set has {size[0]}x{size[1]} and all must agree; "
                f"use dataset=parquet with dataset.image_size={size[0]} to resize every image."
            )
        stacked[row] = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return torch.from_numpy(stacked)
