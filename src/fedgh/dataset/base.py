"""What every data set becomes: two resident splits, their targets and task, and the way to normalize and augment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.core.seeding import numpy_generator
from fedgh.task.base import Task
from fedgh.task.classification import Classification

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Maps inputs (B, ...), such as uint8 images (B, C, H, W), and a CPU generator to new ones of the same shape."""


@runtime_checkable
class Drawing(Protocol):
    """An augmentation that draws apart from applying, so that the inputs of many clients can be augmented at once."""

    def draw(self, num_examples: int, generator: torch.Generator) -> Tensor:
        """Return the random numbers of some examples, ``(B, ...)`` on the CPU."""
        ...

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Return new inputs, each by its own random numbers."""
        ...


class Dataset:
    """A supervised set with its official splits, held as whole tensors; the contract of every data set.

    There are two kinds: :class:`ImageDataset`, and :class:`TensorDataset` for everything else.

    Attributes:
        name: Short name for logs.
        num_tokens: Where inputs are token ids, these go from 0 to this, less one; else ``None``.
        task: What the targets are and how outputs are judged by them.
        augmentation: Applied to training batches before normalisation; ``None`` for none.
        train_inputs: ``(N, *input_shape)`` as resident in memory; the only split that is partitioned among clients.
        train_targets: ``(N,)`` or ``(N, parts)``.
        test_inputs: ``(M, *input_shape)``.
        test_targets: ``(M,)`` or ``(M, parts)``.
        client_ids: Natural client of each training example, int64 ``(N,)`` from 0, such as its writer; or ``None``.
        test_client_ids: Natural client of each test example, ``(M,)``; -1 where it is nobody's; or ``None``.
        domains: Domain of each training example, int64 ``(N,)`` from 0, such as photo or sketch; or ``None``.
        test_domains: Domain of each test example, ``(M,)``; or ``None``.
    """

    noun: ClassVar[str] = "examples"
    _train_fields: ClassVar[tuple[str, ...]] = ("train_inputs", "train_targets", "client_ids", "domains")
    _test_fields: ClassVar[tuple[str, ...]] = ("test_inputs", "test_targets", "test_client_ids", "test_domains")

    if TYPE_CHECKING:  # fields or properties of each kind
        __dataclass_fields__: ClassVar[dict[str, Any]]

        @property
        def name(self) -> str: ...  # noqa: D102
        @property
        def task(self) -> Task: ...  # noqa: D102
        @property
        def num_tokens(self) -> int | None: ...  # noqa: D102
        @property
        def augmentation(self) -> Augment | None: ...  # noqa: D102
        @property
        def train_inputs(self) -> Tensor: ...  # noqa: D102
        @property
        def train_targets(self) -> Tensor: ...  # noqa: D102
        @property
        def test_inputs(self) -> Tensor: ...  # noqa: D102
        @property
        def test_targets(self) -> Tensor: ...  # noqa: D102
        @property
        def client_ids(self) -> Tensor | None: ...  # noqa: D102
        @property
        def test_client_ids(self) -> Tensor | None: ...  # noqa: D102
        @property
        def domains(self) -> Tensor | None: ...  # noqa: D102
        @property
        def test_domains(self) -> Tensor | None: ...  # noqa: D102

    def normalize(self, inputs: Tensor) -> Tensor:
        """Return inputs ``(B, *input_shape)`` as a model takes them; by default as they are."""
        return inputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input; of an image channels, height and width."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes that label-skew partitions and per-class numbers go by."""
        return self.task.num_strata

    @cached_property
    def train_strata(self) -> Tensor:
        """Class of each training example, ``(N,)`` int64 in ``0 .. num_classes - 1``."""
        return self.task.strata(self.train_targets)

    @cached_property
    def test_strata(self) -> Tensor:
        """Class of each test example, ``(M,)`` int64 on the CPU."""
        return self.task.strata(self.test_targets).cpu()

    @cached_property
    def normalized_test_inputs(self) -> Tensor:
        """The test split as the model sees it, ``(M, ...)``; kept, since every evaluation reads it."""
        return self.normalize(self.test_inputs)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of shapes and contents of both splits.

        A checkpoint keeps it to refuse to resume on other data. The device does not change it.
        """
        digest = hashlib.sha256()
        tensors = [self.train_targets, self.test_targets, self.train_inputs, self.test_inputs]
        natural = [self.client_ids, self.test_client_ids, self.domains, self.test_domains]
        for tensor in (*tensors, *(tensor for tensor in natural if tensor is not None)):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Self:
        """Return the same data set with its tensors on ``device``; a fingerprint already known is kept."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)})
        if "fingerprint" in self.__dict__:
            moved.__dict__["fingerprint"] = self.fingerprint
        return moved

    def take_train(self, rows: Tensor) -> Self:
        """Return the data set with these rows of the train split alone, ``(n,)`` int64; the test split stays whole."""
        return self._take(self._train_fields, rows)

    def take_test(self, rows: Tensor) -> Self:
        """Return the data set with these rows of the test split alone, ``(n,)`` int64; the train split stays whole."""
        return self._take(self._test_fields, rows)

    def with_test_of(self, other: Self) -> Self:
        """Return this data set with the test split of another, on the device of this one's training inputs."""
        device = self.train_inputs.device
        values = {name: getattr(other, name) for name in self._test_fields}
        return replace(self, **{name: None if v is None else v.to(device) for name, v in values.items()})

    def _take(self, names: Sequence[str], rows: Tensor) -> Self:
        values = {name: getattr(self, name) for name in names}
        return replace(self, **{name: v[rows.to(v.device)] for name, v in values.items() if v is not None})

    def _check(self) -> None:
        """Raise a DataError where targets, clients or domains do not fit the inputs."""
        for split in ("train", "test"):
            where, inputs = f"dataset {self.name}, {split} split", getattr(self, f"{split}_inputs")
            if inputs.numel() == 0:
                raise DataError(
                    f"{where} is empty (shape {tuple(inputs.shape)}); copy the data set again, or check its files."
                )
            if fault := self.task.fault(getattr(self, f"{split}_targets"), len(inputs)):
                raise DataError(f"{where}{fault}")
            prefix = "" if split == "train" else "test_"
            for name, least in (("client_ids", -1 if prefix else 0), ("domains", 0)):
                _check_natural(where, prefix + name, getattr(self, prefix + name), len(inputs), least)
        train, test = tuple(self.train_inputs.shape[1:]), tuple(self.test_inputs.shape[1:])
        if train != test or self.train_inputs.dtype != self.test_inputs.dtype:
            raise DataError(
                f"dataset {self.name}: train {self.noun} are {_size(train)}{_kind(self.train_inputs)} but test "
                f"{self.noun} are {_size(test)}{_kind(self.test_inputs)}; both splits must agree, so check that they "
                "come from the same data set."
            )


D = TypeVar("D", bound=Dataset)


@dataclass(frozen=True, eq=False)
class TensorDataset(Dataset):
    """Token ids, rows of a table, signals: inputs of any type and shape that reach the model as they are.

    See :class:`Dataset` for the fields.

    Raises:
        DataError: If shapes, types or targets do not fit together; the message names the split and row.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    task: Task
    augmentation: Augment | None = None
    client_ids: Tensor | None = None
    test_client_ids: Tensor | None = None
    domains: Tensor | None = None
    test_domains: Tensor | None = None
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        self._check()
        if self.num_tokens is not None:
            _check_tokens(self.name, self.num_tokens, self.train_inputs, self.test_inputs)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images with their official splits; a classification unless another task is given.

    See :class:`Dataset` for the other fields; ``train_inputs`` and ``train_targets`` are other names of
    ``train_images`` and ``train_labels``.

    Attributes:
        train_images: uint8 (N, C, H, W); the only split that is ever partitioned among clients.
        train_labels: int64 (N,), each in ``0 .. num_classes - 1``; or the targets of the task.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,), or the targets of the task.
        class_names: One per class, in the order of the labels; with another task the names of its strata.
        mean: Per channel, of the training images scaled to [0, 1].
        std: Per channel standard deviation on the same scale, positive.
        task: ``None`` becomes the classification of these classes.

    Raises:
        DataError: If shapes, types, labels or statistics do not fit together; the message names the split and row.
    """

    noun: ClassVar[str] = "images"
    _train_fields: ClassVar[tuple[str, ...]] = ("train_images", "train_labels", "client_ids", "domains")
    _test_fields: ClassVar[tuple[str, ...]] = ("test_images", "test_labels", "test_client_ids", "test_domains")

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augment | None
    task: Task = None  # type: ignore[assignment]  # filled in below
    client_ids: Tensor | None = None
    test_client_ids: Tensor | None = None
    domains: Tensor | None = None
    test_domains: Tensor | None = None

    def __post_init__(self) -> None:
        if self.task is None or isinstance(self.task, Classification):
            object.__setattr__(self, "task", Classification(tuple(self.class_names)))
        if tuple(self.class_names) != self.task.strata_names:
            raise DataError(
                f"dataset {self.name}: class_names are {_few(self.class_names)} but those of its task are "
                f"{_few(self.task.strata_names)}; give class_names=task.strata_names."
            )
        for split, images in (("train", self.train_images), ("test", self.test_images)):
            if images.ndim != 4 or images.dtype != torch.uint8:
                raise DataError(
                    f"dataset {self.name}, {split} split: images must be uint8 of shape (N, C, H, W), "
                    f"got {images.dtype} of shape {tuple(images.shape)}."
                )
        self._check()
        _check_statistics(self.name, self.train_images.shape[1], self.mean, self.std)

    @property
    def num_tokens(self) -> None:
        """Images are not token ids."""

    @property
    def train_inputs(self) -> Tensor:
        """The training images."""
        return self.train_images

    @property
    def train_targets(self) -> Tensor:
        """The training labels."""
        return self.train_labels

    @property
    def test_inputs(self) -> Tensor:
        """The test images."""
        return self.test_images

    @property
    def test_targets(self) -> Tensor:
        """The test labels."""
        return self.test_labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def normalized_test_images(self) -> Tensor:
        """Another name of ``normalized_test_inputs``, float32 (M, C, H, W)."""
        return self.normalized_test_inputs

    @cached_property
    def _scale_shift(self) -> tuple[Tensor, Tensor]:
        """``1 / (255 std)`` and ``-mean / std`` as float32 (C, 1, 1), computed in double precision."""
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        device = self.train_images.device
        scale, shift = 1.0 / (255.0 * std), -mean / std
        return scale.float().view(-1, 1, 1).to(device), shift.float().view(-1, 1, 1).to(device)

    def normalize(self, inputs: Tensor) -> Tensor:
        """Return ``(inputs / 255 - mean) / std`` as float32, computed as ``inputs * scale + shift``.

        Product and sum are rounded separately, so an image's result is the same bits in any batch and on any device
        (a hardware fused multiply-add would differ between vectorised and remaining elements).

        Args:
            inputs: Images, uint8 (B, C, H, W) on this data set's device; left as they were.
        """
        scale, shift = self._scale_shift
        return inputs.float().mul_(scale).add_(shift)


def take_fraction(dataset: D, fraction: float) -> D:
    """Keep a fixed stratified fraction of the train split, for quick presets; the test split stays whole.

    Per class ``max(1, round(fraction * n_c))`` examples are kept, in their original order. The choice does not depend
    on the experiment's seed, and a smaller fraction is a subset of a larger one.

    Args:
        dataset: Data set to thin; left as it was.
        fraction: In (0, 1]; 1 returns ``dataset`` itself.

    Raises:
        ConfigurationError: If ``fraction`` is outside (0, 1].
    """
    strata = dataset.train_strata.cpu().numpy()
    rows = train_rows(strata, fraction)
    return dataset if len(rows) == len(strata) else dataset.take_train(torch.from_numpy(rows))


def input_range(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest pixel as the model sees them, ``(C, 1, 1)`` each; the data are images."""
    images = dataset.train_inputs
    low, high = (dataset.normalize(images.new_full((1, images.shape[1], 1, 1), value))[0] for value in (0, 255))
    return low, high


def hold_out(dataset: D, fraction: float, seed: int) -> tuple[D, D]:
    """Take a stratified part out of the train split, to judge settings by without a look at the test split.

    Per class ``round(fraction * n_c)`` examples are drawn; of each class at least one stays.

    Args:
        dataset: Left as it was.
        fraction: In [0, 1); of the train split as it is, after ``train_fraction``.
        seed: Of the experiment; the draw is addressed ``(seed, "validation", class)``.

    Returns:
        The data set without the part, and the same with the part in the place of the test split.

    Raises:
        ConfigurationError: If ``fraction`` is outside [0, 1), or so small that no example is drawn.
    """
    if not 0.0 <= fraction < 1.0:
        raise ConfigurationError(f"dataset.validation_fraction must be in [0, 1), got {fraction}; try 0.1.")
    strata = dataset.train_strata.cpu().numpy()
    chosen = np.zeros(len(strata), dtype=bool)
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        count = min(int(fraction * len(rows) + 0.5), len(rows) - 1)
        chosen[numpy_generator(seed, "validation", client_id=int(label)).permutation(rows)[:count]] = True
    if not chosen.any():
        raise ConfigurationError(
            f"dataset.validation_fraction={fraction} of {len(strata)} training examples in {len(np.unique(strata))} "
            "classes is not one example; try 0.1, or null for no validation part."
        )
    part, rest = (dataset.take_train(torch.from_numpy(np.flatnonzero(mask))) for mask in (chosen, ~chosen))
    taken = {test: getattr(part, train) for train, test in zip(part._train_fields, part._test_fields, strict=True)}
    return rest, replace(rest, **taken)


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
    return "x".join(str(side) for side in shape) or "single numbers"


def _kind(tensor: Tensor) -> str:
    return "" if tensor.dtype == torch.uint8 else f" {tensor.dtype}".replace("torch.", "")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _check_natural(where: str, name: str, ids: Tensor | None, num_examples: int, least: int) -> None:
    if ids is None:
        return
    if ids.dtype != torch.int64 or tuple(ids.shape) != (num_examples,) or int(ids.min()) < least:
        raise DataError(
            f"{where}: {name} must be int64 of shape ({num_examples},) from {least} on, one per example, got "
            f"{ids.dtype} of shape {tuple(ids.shape)}{f', least {int(ids.min())}' if ids.numel() else ''}."
        )


def _check_tokens(name: str, num_tokens: int, *splits: Tensor) -> None:
    for inputs in splits:
        if inputs.dtype != torch.int64 or int(inputs.min()) < 0 or int(inputs.max()) >= num_tokens:
            raise DataError(
                f"dataset {name}: token ids must be int64 from 0 to {num_tokens - 1}, got {inputs.dtype} from "
                f"{inputs.min().item()} to {inputs.max().item()}; give num_tokens the size of the vocabulary."
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
