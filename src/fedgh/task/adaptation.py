"""Classification learned in one domain for another, whose labels nobody knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.task.base import PADDING, Task, label_fault, mean_cross_entropy, type_fault
from fedgh.task.classification import Classification

SOURCE, TARGET = 0, 1
"""Values of the second target."""


@dataclass(frozen=True)
class Adaptation(Task):
    """Cross-entropy over the labelled examples; targets int64 ``(B, 2)``: label, or ``PADDING``, and domain.

    Outputs are logits ``(B, classes)``. Label-skew partitions see one class more, that of the unlabelled examples.

    Attributes:
        class_names: One per class, in the order of the labels.
    """

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        _ = self._labels  # which checks the classes

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return len(self.class_names)

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The classes, and that of the unlabelled examples."""
        return (*self.class_names, "unlabelled")

    @property
    def _labels(self) -> Classification:
        return Classification(self.class_names)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the labelled examples; 0 where there are none."""
        return mean_cross_entropy(outputs, targets[..., 0])

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each is right (``acc``) and its cross-entropy (``loss``)."""
        return self._labels.scores(outputs, targets[..., 0])

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return probabilities ``(n, classes)`` and labels ``(n,)``."""
        return self._labels.predictions(outputs, targets[..., 0])

    def strata(self, targets: Tensor) -> Tensor:
        """Return the labels, and one class more for the examples that have none."""
        labels = targets[..., 0]
        return torch.where(labels == PADDING, len(self.class_names), labels)

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Targets must be int64 ``(N, 2)``, labels in ``0 .. classes - 1`` or missing, domains 0 or 1."""
        shape = (num_examples, 2)
        wrong = type_fault(targets, torch.int64, tuple(targets.shape) == shape, f"{shape}, label and domain")
        wrong = wrong or label_fault(targets[:, 0], self.num_outputs, padding=True)
        return wrong or label_fault(targets[:, 1], 2, padding=False)
