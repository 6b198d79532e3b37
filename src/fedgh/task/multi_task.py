"""Several labels per example, each with classes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedgh.task.base import PADDING, Task, label_fault, mean_cross_entropy, probabilities, type_fault


@dataclass(frozen=True)
class MultiTask(Task):
    """The mean of several cross-entropies; targets int64 ``(B, tasks)``, outputs the tasks' logits side by side.

    A label may be missing: ``PADDING`` in its place. Label-skew partitions go by the first task.

    Attributes:
        class_names: Names of the classes of each task, by the name of the task.
        apart: Whether an example may lack the first label, too, as where each client has a task of its own; label-skew
            partitions then go by task and class of an example's first label.
    """

    class_names: Mapping[str, tuple[str, ...]]
    apart: bool = False

    @property
    def num_outputs(self) -> int:
        """One logit per class of every task."""
        return sum(self.widths)

    @property
    def num_targets(self) -> int:
        """One per task."""
        return len(self.class_names)

    @property
    def widths(self) -> list[int]:
        """Number of classes of each task."""
        return [len(names) for names in self.class_names.values()]

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The classes of the first task; of all tasks where they are apart."""
        if self.apart:
            return tuple(f"{task} {name}" for task, names in self.class_names.items() for name in names)
        return next(iter(self.class_names.values()))

    def parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each task, ``(B, classes)``."""
        return torch.split(outputs, self.widths, dim=-1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of each task over the examples labelled for it, ``(tasks,)``."""
        pairs = zip(self.parts(outputs), targets.unbind(-1), strict=True)
        return torch.stack([mean_cross_entropy(part, target) for part, target in pairs])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of :meth:`losses` over the tasks that the batch has labels of."""
        known = (targets != PADDING).reshape(-1, targets.shape[-1]).any(0)
        return self.losses(outputs, targets).sum() / known.sum().clamp(min=1)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return share of right answers and mean loss over an example's labels, and ``acc/<task>`` where it has one."""
        labels, parts = targets.unbind(-1), self.parts(outputs)
        pairs = list(zip(parts, labels, strict=True))
        right = torch.stack([(part.argmax(-1) == label).float() for part, label in pairs])
        losses = [cross_entropy(part, label, reduction="none", ignore_index=PADDING) for part, label in pairs]
        labelled = (targets != PADDING).sum(-1).clamp(min=1)
        known = [torch.where(label == PADDING, torch.nan, row) for label, row in zip(labels, right, strict=True)]
        each = {f"acc/{name}": row for name, row in zip(self.class_names, known, strict=True)}
        return {"acc": right.sum(0) / labelled, "loss": torch.stack(losses).sum(0) / labelled, **each}

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return probabilities ``(n, classes)`` and labels ``(n,)`` of each task."""
        pairs = zip(self.class_names, self.parts(outputs), targets.unbind(-1), strict=True)
        return {name: probabilities(part, labels) for name, part, labels in pairs}

    def strata(self, targets: Tensor) -> Tensor:
        """Return the labels of the first task; where tasks are apart, of an example's first label."""
        if not self.apart:
            return targets[..., 0]
        first = (targets != PADDING).to(torch.int8).argmax(-1, keepdim=True)
        offsets = torch.tensor([0, *self.widths[:-1]], device=targets.device).cumsum(0)
        return offsets[first[..., 0]] + targets.gather(-1, first)[..., 0]

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Labels must be int64 ``(N, tasks)``; the first task's are all there, or one of each example's tasks."""
        shape = (num_examples, len(self.class_names))
        wrong = type_fault(targets, torch.int64, tuple(targets.shape) == shape, f"{shape}, one per example and task")
        if wrong:
            return wrong
        for place, (name, width) in enumerate(zip(self.class_names, self.widths, strict=True)):
            if wrong := label_fault(targets[:, place], width, padding=place > 0 or self.apart):
                return f", task {name}{wrong}"
        if self.apart and bool((empty := (targets == PADDING).all(1)).any()):
            return f", row {int(empty.nonzero()[0])}: it has a label of no task; leave it out."
        return None
