"""The token that comes next, at the end of a context or at each of its positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedgh.task.base import PADDING, Task, label_fault, mean_cross_entropy, probabilities, type_fault


@dataclass(frozen=True)
class NextToken(Task):
    """Cross-entropy over a vocabulary, mean over all tokens that count.

    Targets are int64 ``(B,)`` with outputs ``(B, tokens)``, or ``(B, T)`` with outputs ``(B, T, tokens)``; positions
    after the end of a text are ``PADDING``. Label-skew partitions go by the first target of an example.

    Attributes:
        vocabulary: One name per token, in the order of their numbers.
    """

    vocabulary: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One logit per token."""
        return len(self.vocabulary)

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The tokens."""
        return self.vocabulary

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over all tokens of the batch."""
        return mean_cross_entropy(outputs.reshape(-1, self.num_outputs), targets.reshape(-1))

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the share of an example's tokens that are right (``acc``) and their mean cross-entropy (``loss``)."""
        flat = outputs.reshape(-1, self.num_outputs)
        losses = cross_entropy(flat, targets.reshape(-1), reduction="none", ignore_index=PADDING)
        right = (flat.argmax(-1) == targets.reshape(-1)).float()
        number = (targets != PADDING).reshape(len(targets), -1).sum(1).clamp(min=1)
        acc, loss = (values.reshape(len(targets), -1).sum(1) / number for values in (right, losses))
        return {"acc": acc, "loss": loss}

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return probabilities ``(n, tokens)`` and tokens ``(n,)`` of all positions that count."""
        return {"": probabilities(outputs.reshape(-1, self.num_outputs), targets.reshape(-1))}

    def strata(self, targets: Tensor) -> Tensor:
        """Return the first target."""
        return targets if targets.ndim == 1 else targets[:, 0]

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Tokens must be int64 ``(N,)`` or ``(N, T)``; each example has at least its first target."""
        fits = targets.ndim in (1, 2) and len(targets) == num_examples
        wrong = type_fault(targets, torch.int64, fits, f"({num_examples},) or ({num_examples}, T)")
        wrong = wrong or label_fault(self.strata(targets), self.num_outputs, padding=False)
        return wrong or label_fault(targets, self.num_outputs, padding=True)
