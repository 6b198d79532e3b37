"""Numbers as targets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fedgh.task.base import PADDING, Task, type_fault


@dataclass(frozen=True)
class Regression(Task):
    """Mean squared error; targets float ``(B,)`` or ``(B, outputs)``, outputs ``(B, outputs)``.

    Attributes:
        variance: Mean squared deviation of the training targets from their mean; what ``r2`` measures errors by.
        edges: Where the first target is cut into classes for label-skew partitions, ascending; for instance quantiles.
        outputs: Numbers to predict per example.
    """

    main: ClassVar[str] = "r2"

    variance: float
    edges: tuple[float, ...]
    outputs: int

    @property
    def num_outputs(self) -> int:
        """One per number to predict."""
        return self.outputs

    @classmethod
    def of(cls, targets: Tensor, num_strata: int) -> Regression:
        """Return the task of these training targets, cut into about equally many per class.

        Args:
            targets: ``(N,)`` or ``(N, outputs)``.
            num_strata: Classes that label-skew partitions go by, at least 1; fewer where targets repeat.
        """
        values = targets.double()
        first = values if values.ndim == 1 else values[:, 0]
        shares = torch.arange(1, num_strata, dtype=torch.float64, device=first.device) / num_strata
        edges = sorted(set(first.quantile(shares).tolist())) if num_strata > 1 else []
        variance = float((values - values.mean(0)).square().mean())
        return cls(variance, tuple(edges), 1 if targets.ndim == 1 else targets.shape[1])

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The intervals between the edges."""
        ends = [f"{edge:.4g}" for edge in self.edges]
        if not ends:
            return ("all",)
        between = (f"{low} to {high}" for low, high in pairwise(ends))
        return (f"below {ends[0]}", *between, f"above {ends[-1]}")

    def _errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``outputs - targets``, 0 at padding, and what counts; both of the shape of the targets."""
        counts = targets != PADDING
        return torch.where(counts, outputs.reshape(targets.shape) - targets, 0.0), counts

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        error, counts = self._errors(outputs, targets)
        return error.square().sum() / counts.sum().clamp(min=1)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return ``r2``, squared error (``loss``) and absolute error (``mae``), means over an example's targets.

        The mean of ``r2`` is one minus the mean squared error over the variance of the *training* targets: 1 is
        perfect, 0 as good as always answering their mean.
        """
        error, counts = self._errors(outputs, targets)
        error, counts = error.reshape(len(error), -1), counts.reshape(len(error), -1)
        number = counts.sum(1).clamp(min=1)
        squared = error.square().sum(1) / number
        r2 = torch.where(counts.any(1), 1 - squared / self.variance, 0.0)
        return {"r2": r2, "loss": squared, "mae": error.abs().sum(1) / number}

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return predicted and true numbers, ``(n,)`` or ``(n, outputs)``."""
        known = (targets != PADDING).reshape(len(targets), -1).all(1)
        return {"": (outputs.reshape(targets.shape)[known], targets[known])}

    def strata(self, targets: Tensor) -> Tensor:
        """Return the interval that the first target lies in."""
        first = targets if targets.ndim == 1 else targets[:, 0]
        edges = torch.tensor(self.edges, dtype=first.dtype, device=first.device)
        return torch.bucketize(first.contiguous(), edges, right=True)

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Targets must be finite float32, and none may be ``PADDING``, which would not count."""
        shapes = [(num_examples, self.outputs)] + [(num_examples,)] * (self.outputs == 1)
        fits = tuple(targets.shape) in shapes
        wrong = type_fault(targets, torch.float32, fits, " or ".join(map(str, reversed(shapes))))
        if wrong:
            return wrong
        bad = (~targets.isfinite() | (targets == PADDING)).reshape(num_examples, -1).any(1).nonzero()
        if not len(bad):
            return None
        row = int(bad[0])
        return (
            f", row {row}: target {targets[row].tolist()} is not finite or is {PADDING}, which stands for a missing "
            f"row ({len(bad)} such rows in all); remove them, or shift and scale the targets."
        )
