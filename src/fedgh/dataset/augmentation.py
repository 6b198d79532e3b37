"""Augmentation of whole batches, on the device that holds them, from one CPU generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgh.core.device import sent
from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.auto_augment import CIFAR10_POLICY, KERNELS, OPERATIONS, SIGNED, magnitudes

DRAWS_PER_IMAGE = 8
"""Uniform numbers an image uses up: crop top, crop left, flip, sub-policy, two probabilities, two signs."""


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip and AutoAugment, in this order, as torchvision composes them.

    The batched counterpart of ``Compose([RandomCrop(size, padding), RandomHorizontalFlip(), AutoAugment(CIFAR10)])``.
    A pure function of the images and of the generator's state. Every image uses eight numbers of the generator,
    whatever is switched on, so its result depends on its place in the stream but neither on the other images nor on
    where batches are cut. No step leaves room for a GPU to round otherwise than the CPU.

    Attributes:
        crop_padding: Zero pixels added on each side before a crop of the original size; 0 for no crop.
        flip: Whether to mirror left and right with probability 1/2.
        auto_augment: Whether to apply one of the 25 CIFAR-10 sub-policies, drawn uniformly.

    Departures:
        Equal to torchvision in distribution, not draw by draw. A step applies when ``u < p`` where torchvision has
        ``u <= p``, so a probability of 0 means never.
    """

    crop_padding: int
    flip: bool
    auto_augment: bool

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ConfigurationError(
                f"dataset.augmentation.crop_padding must be 0 (no crop) or more pixels, got {self.crop_padding}; "
                "try 4 for images of 32 pixels."
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images, uint8 (B, C, H, W) on the device of ``images``, which stay as they were.

        Args:
            images: uint8 (B, C, H, W); C is 1 or 3.
            generator: On the CPU; advanced by ``8 B`` double-precision numbers.

        Raises:
            DataError: If ``images`` are not uint8 of four dimensions with 1 or 3 channels.
        """
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the random numbers of some images, float64 (B, 8) in [0, 1) on the CPU."""
        return torch.rand(num_images, DRAWS_PER_IMAGE, dtype=torch.float64, generator=generator)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images augmented as their random numbers say, of however many clients they are.

        Everything drawn goes to the device in two copies that nobody waits for.

        Args:
            images: See :meth:`__call__`.
            draws: See :meth:`draw`.

        Raises:
            DataError: See :meth:`__call__`.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                "augmentation needs uint8 images of shape (B, C, H, W) with 1 or 3 channels, "
                f"got {images.dtype} of shape {tuple(images.shape)}; set dataset.augmentation=null for other images."
            )
        plans = _plan(draws[:, 3:], *images.shape[-2:]) if self.auto_augment else []
        window = (draws[:, :2] * (2 * self.crop_padding + 1)).long()
        orders = [plan.order for plan in plans]
        backs = [order.argsort() for order in orders]
        moves = [*orders[:1], *(back[order] for back, order in zip(backs, orders[1:], strict=False)), *backs[-1:]]
        places = torch.stack([*window.unbind(1), (draws[:, 2] < 0.5).long(), *moves])
        top, left, mirrored, *moves = sent(places, images.device).unbind()
        result = _crop(images, self.crop_padding, top, left) if self.crop_padding else images.clone()
        if self.flip:
            result = torch.where(mirrored.view(-1, 1, 1, 1) > 0, result.flip(-1), result)
        if not plans:
            return result
        numbers = sent(torch.stack([plan.numbers for plan in plans]), images.device)
        for plan, move, own in zip(plans, moves, numbers, strict=False):
            result = _apply_step(result.index_select(0, move), own, plan.counts)
        return result.index_select(0, moves[-1])


def random_crop(images: Tensor, padding: int, draws: Tensor) -> Tensor:
    """Pad each image with zeros and cut a window of the original size out of it.

    Args:
        images: uint8 (B, C, H, W).
        padding: Zero pixels added on each of the four sides.
        draws: (B, 2) in [0, 1); the window's top row is ``floor(draws[:, 0] * (2 padding + 1))``, likewise left.
    """
    top, left = (draws * (2 * padding + 1)).long().to(images.device).unbind(1)
    return _crop(images, padding, top, left)


def _crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    long_row = width + 2 * padding
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * padded[0, 0].numel()
    row = (top[:, None] + torch.arange(height, device=images.device)) * long_row + left[:, None]  # (batch, height)
    # Every run of `width` neighbouring bytes is a candidate row; selecting rows copies them whole.
    candidates = padded.view(-1).unfold(0, width, 1)
    return candidates.index_select(0, (plane + row[:, None]).view(-1)).view(images.shape)


def draw_policy(draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn uniform numbers into what AutoAugment does to each image in its two steps.

    Args:
        draws: (B, 5) in [0, 1), on the CPU: sub-policy, a probability per step, a sign per step.
        height: Of the images, pixels.
        width: Of the images, pixels.

    Returns:
        Operation as a number in the order of ``OPERATIONS``, int64 (B, 2); whether it is applied, bool (B, 2); its
        signed magnitude, float64 (B, 2).
    """
    table = _policy_table(height, width)
    policy = (draws[:, 0] * len(CIFAR10_POLICY)).long()
    negative = table.signed[policy] & (draws[:, 3:5] < 0.5)
    chosen = table.magnitude[policy]
    return table.operation[policy], draws[:, 1:3] < table.probability[policy], torch.where(negative, -chosen, chosen)


@dataclass(frozen=True, slots=True)
class _PolicyTable:
    """The sub-policies for images of one size; each (25, 2), ``numbers`` (25, 2, 2, 2): as is and negated.

    Attributes:
        operation: Number in the order of ``OPERATIONS``.
        kernel: Number in the order of ``KERNELS``, from 1.
        probability: Of applying it.
        magnitude: Unsigned.
        signed: Whether the sign is drawn.
        numbers: What the kernel wants to know.
    """

    operation: Tensor
    kernel: Tensor
    probability: Tensor
    magnitude: Tensor
    signed: Tensor
    numbers: Tensor


@lru_cache(maxsize=16)
def _policy_table(height: int, width: int) -> _PolicyTable:
    names, parts = list(OPERATIONS), list(OPERATIONS.values())
    operation = [[names.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY]
    strength = [[float(magnitudes(name, height, width)[i or 0]) for name, _, i in pair] for pair in CIFAR10_POLICY]
    numbers = [
        [[parts[o].numbers(sign * value, height, width) for sign in (1, -1)] for o, value in zip(*pair, strict=True)]
        for pair in zip(operation, strength, strict=True)
    ]
    return _PolicyTable(
        operation=torch.tensor(operation),
        kernel=torch.tensor([[1 + KERNELS.index(parts[o].kernel) for o in pair] for pair in operation]),
        probability=torch.tensor([[p for _, p, _ in pair] for pair in CIFAR10_POLICY], dtype=torch.float64),
        magnitude=torch.tensor(strength, dtype=torch.float64),
        signed=torch.tensor([[name in SIGNED for name, _, _ in pair] for pair in CIFAR10_POLICY]),
        numbers=torch.tensor(numbers, dtype=torch.float32),
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens to a batch in one step of the policy.

    Attributes:
        order: Which image comes at each place when those of one kernel stand together, (B,).
        counts: How many images are left as they are, then how many each kernel gets.
        numbers: What the kernels want to know, in this order, (B, 2).
    """

    order: Tensor
    counts: list[int]
    numbers: Tensor


def _plan(draws: Tensor, height: int, width: int) -> list[_Plan]:
    """Sort the images by kernel for each of the two steps; see :func:`draw_policy`."""
    table = _policy_table(height, width)
    policy = (draws[:, 0] * len(CIFAR10_POLICY)).long()
    negative = (table.signed[policy] & (draws[:, 3:5] < 0.5)).long()
    kernels = torch.where(draws[:, 1:3] < table.probability[policy], table.kernel[policy], 0)
    plans = []
    for step, kernel in enumerate(kernels.unbind(1)):
        order = kernel.argsort(stable=True)
        counts = kernel.bincount(minlength=len(KERNELS) + 1).tolist()
        plans.append(_Plan(order, counts, table.numbers[policy, step, negative[:, step]][order]))
    return plans


def _apply_step(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Apply each kernel once to its run of the sorted images.

    Whole images are moved as rows, which is several times faster on the CPU than masks or indexed assignment.
    """
    untouched, *runs = images.split_with_sizes(counts)
    own = numbers.split_with_sizes(counts)[1:]
    done = [kernel(run, some) for kernel, run, some in zip(KERNELS, runs, own, strict=True) if len(run)]
    return torch.cat([untouched, *done])
