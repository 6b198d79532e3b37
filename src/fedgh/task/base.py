"""The contract of a task: what a model's outputs mean, and how wrong they are.

A task is a set of pure functions of tensors, so it runs under ``torch.func.vmap`` and ``grad``. The data set says which
task it is; whatever trains or evaluates a model asks the task and knows none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PADDING = -100
"""Target that does not count: of a row that is not there, of a token after the end of a text, of a missing label."""


def mean_over_rows(values: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of a batch's values ``(B,)`` over the rows that have a target; the others only fill it up."""
    counts = (targets != PADDING).reshape(len(targets), -1).any(1).to(values)
    return (values * counts).sum() / counts.sum()


class Task(ABC):
    """A supervised task with targets ``(B,)`` or ``(B, parts)``.

    Attributes:
        main: The score that a run is judged by, the first of :meth:`scores`; more of it is better.
    """

    main: ClassVar[str] = "acc"

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers a model must put out for one example (for one position of a sequence)."""

    @property
    @abstractmethod
    def strata_names(self) -> tuple[str, ...]:
        """Names of the classes that :meth:`strata` sorts examples into."""

    @property
    def num_strata(self) -> int:
        """Number of classes that label-skew partitions and per-class numbers go by."""
        return len(self.strata_names)

    @property
    def num_targets(self) -> int:
        """How many targets an example has that a method may weigh against each other, see :meth:`losses`."""
        return 1

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; targets equal to ``PADDING`` do not count.

        Args:
            outputs: What the model puts out, ``(B, num_outputs)``.
            targets: ``(B,)`` or ``(B, parts)``.
        """

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target that a method may weigh, ``(num_targets,)``."""
        return self.loss(outputs, targets)[None]

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return numbers per example, ``(B,)`` each, whose means are the metrics of these names.

        The first is :attr:`main`; ``loss`` is always among them. Rows of padding get 0; a score
        ``<name>/<part>`` of one target of several is NaN where that target is missing.
        """

    @abstractmethod
    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what further metrics compare, by target: predictions (probabilities, or numbers) and truth.

        Where there is one target its name is empty. Targets that are ``PADDING`` are left out.
        """

    @abstractmethod
    def strata(self, targets: Tensor) -> Tensor:
        """Return the class of each example, ``(N,)`` int64 in ``0 .. num_strata - 1``."""

    @abstractmethod
    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Return what is wrong with the targets ``(N, ...)`` of a split of so many examples, in words, or None."""


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the targets that count, a scalar; 0 where none does.

    Args:
        logits: ``(B, classes)``.
        targets: ``(B,)`` int64, ``PADDING`` where there is none.
    """
    total = cross_entropy(logits, targets, reduction="sum", ignore_index=PADDING)
    return total / (targets != PADDING).sum().clamp(min=1)


def probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of logits ``(n, classes)`` and labels ``(n,)``, both without padding."""
    known = labels != PADDING
    return logits[known].softmax(-1), labels[known]


def label_fault(labels: Tensor, num_classes: int, padding: bool) -> str | None:
    """Return what is wrong with class labels, in words, or None.

    Args:
        labels: ``(N,)`` or ``(N, ...)``.
        num_classes: Labels go from 0 to this, less one.
        padding: Whether ``PADDING`` may stand among them.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if padding:
        wrong &= labels != PADDING
    places = wrong.nonzero()
    if not len(places):
        return None
    place = tuple(places[0].tolist())
    return (
        f", row {place[0]}: label {int(labels[place])} is outside the classes 0 to {num_classes - 1} "
        f"({len(places)} such labels in all); check the labels, or that all {num_classes} class names are right."
    )


def type_fault(targets: Tensor, dtype: torch.dtype, fits: bool, shape: str) -> str | None:
    """Return that targets are of another type or shape, in words, or None.

    Args:
        targets: ``(N, ...)``.
        dtype: Expected type.
        fits: Whether the shape is as expected.
        shape: The expected shape, in words.
    """
    if targets.dtype == dtype and fits:
        return None
    kind = str(dtype).removeprefix("torch.")
    return f": labels must be {kind} of shape {shape}, got {targets.dtype} of shape {tuple(targets.shape)}."
