"""One label per example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedgh.core.errors import DataError
from fedgh.task.base import PADDING, Task, label_fault, probabilities, type_fault


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy over classes; targets int64 ``(B,)``, outputs logits ``(B, classes)``.

    Attributes:
        class_names: One per class, in the order of the labels.
    """

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(f"a classification needs at least 2 classes, got {list(self.class_names)}.")

    @property
    def num_outputs(self) -> int:
        """One logit per class."""
        return len(self.class_names)

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The classes themselves."""
        return self.class_names

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs, targets, ignore_index=PADDING)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each is right (``acc``) and its cross-entropy (``loss``)."""
        loss = cross_entropy(outputs, targets, reduction="none", ignore_index=PADDING)
        return {"acc": (outputs.argmax(-1) == targets).float(), "loss": loss}

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return probabilities ``(n, classes)`` and labels ``(n,)``."""
        return {"": probabilities(outputs, targets)}

    def strata(self, targets: Tensor) -> Tensor:
        """Return the labels."""
        return targets

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Labels must be int64 ``(N,)`` in ``0 .. classes - 1``."""
        fits = tuple(targets.shape) == (num_examples,)
        wrong = type_fault(targets, torch.int64, fits, f"({num_examples},), one per example")
        return wrong or label_fault(targets, self.num_outputs, padding=False)
