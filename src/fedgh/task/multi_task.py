"""Several targets per example: labels with classes of their own, and points in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedgh.task.base import PADDING, Task, label_fault, mean_cross_entropy, probabilities, type_fault

NEAR = 0.1
"""Share of the distance between the first two points within which a point counts as found."""


@dataclass(frozen=True)
class MultiTask(Task):
    """The mean of several losses, one a task; the model puts out the tasks' numbers side by side.

    Targets are int64 ``(B, tasks)``, one label per task; with points float32, the labels first, and then of each task
    of P points their P abscissae and P ordinates. A task of classes has its cross-entropy for a loss, one of points the
    mean squared error of its 2P numbers. A target may be missing: ``PADDING`` in its place (in all 2P). Label-skew
    partitions go by the first task.

    Attributes:
        class_names: Names of the classes of each task, by the name of the task; one task at least.
        apart: Whether an example may lack the first label, too, as where each client has a task of its own; label-skew
            partitions then go by task and class of an example's first target.
        points: Further tasks, numbers of points by the name of the task; two at least, for whose distance see
            :meth:`scores`.
    """

    class_names: Mapping[str, tuple[str, ...]]
    apart: bool = False
    points: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tasks, in the order of their outputs."""
        return (*self.class_names, *self.points)

    @property
    def num_outputs(self) -> int:
        """One logit per class of every task, two numbers a point."""
        return sum(self.widths)

    @property
    def num_targets(self) -> int:
        """One per task."""
        return len(self.names)

    @property
    def widths(self) -> list[int]:
        """Number of outputs of each task."""
        return [len(names) for names in self.class_names.values()] + [2 * count for count in self.points.values()]

    @property
    def columns(self) -> list[int]:
        """Number of columns of each task among the targets."""
        return [1] * len(self.class_names) + [2 * count for count in self.points.values()]

    @property
    def strata_names(self) -> tuple[str, ...]:
        """The classes of the first task; of all tasks where they are apart, those of points being one class each."""
        if self.apart:
            classes = [f"{task} {name}" for task, names in self.class_names.items() for name in names]
            return (*classes, *self.points)
        return next(iter(self.class_names.values()))

    def parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of each task, ``(B, width)``."""
        return torch.split(outputs, self.widths, dim=-1)

    def known(self, targets: Tensor) -> Tensor:
        """Return which tasks each example has a target of, ``(B, tasks)`` bool."""
        return torch.stack([own[..., 0] != PADDING for own in torch.split(targets, self.columns, dim=-1)], dim=-1)

    def _pairs(self, outputs: Tensor, targets: Tensor) -> tuple[list[tuple[Tensor, Tensor]], ...]:
        """Return outputs and targets of the tasks of classes (int64 ``(B,)``), and of those of points ``(B, 2P)``."""
        pairs = list(zip(self.parts(outputs), torch.split(targets, self.columns, dim=-1), strict=True))
        count = len(self.class_names)
        return [(part, own[..., 0].long()) for part, own in pairs[:count]], pairs[count:]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each task over the examples that have its target, ``(tasks,)``; 0 where none has."""
        labels, points = self._pairs(outputs, targets)
        entropies = [mean_cross_entropy(part, target) for part, target in labels]
        return torch.stack(entropies + [_squared(*pair).sum() / _count(pair[1]) for pair in points])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of :meth:`losses` over the tasks that the batch has targets of."""
        known = self.known(targets).reshape(-1, self.num_targets).any(0)
        return self.losses(outputs, targets).sum() / known.sum().clamp(min=1)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return ``acc`` and ``loss``, means over an example's targets, and ``acc/<task>`` where it has that one.

        For points ``acc`` is the share of them that lie within a tenth of the distance between the first two, and
        ``error/<task>`` their mean distance in that unit: that of the eyes, as faces are scored.
        """
        labels, points = self._pairs(outputs, targets)
        losses = [cross_entropy(part, label, reduction="none", ignore_index=PADDING) for part, label in labels]
        right = [(part.argmax(-1) == label).float() for part, label in labels]
        errors = [_distances(part, target) for part, target in points]
        losses += [_squared(part, target) for part, target in points]
        right += [(error < NEAR).float().mean(-1) for error in errors]
        known = self.known(targets)
        counts, missing = known.to(outputs.dtype), (~known).unbind(-1)
        each = {f"acc/{name}": row for name, row in zip(self.names, right, strict=True)}
        each |= {f"error/{name}": error.mean(-1) for name, error in zip(self.points, errors, strict=True)}
        lacking = [*missing, *missing[len(self.class_names) :]]
        each = {name: row.masked_fill(own, torch.nan) for (name, row), own in zip(each.items(), lacking, strict=True)}
        number = counts.sum(-1).clamp(min=1)
        acc, loss = ((torch.stack(values, dim=-1) * counts).sum(-1) / number for values in (right, losses))
        return {"acc": acc, "loss": loss, **each}

    def predictions(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return probabilities ``(n, classes)`` and labels ``(n,)`` of each task of classes; points are left out."""
        pairs = zip(self.class_names, self._pairs(outputs, targets)[0], strict=True)
        return {name: probabilities(*pair) for name, pair in pairs}

    def strata(self, targets: Tensor) -> Tensor:
        """Return the labels of the first task; where tasks are apart, of an example's first target."""
        count = len(self.class_names)
        labels = targets[..., :count].long()
        if not self.apart:
            return labels[..., 0]
        first = self.known(targets).to(torch.int8).argmax(-1, keepdim=True)
        sizes = [0, *self.widths[:count], *(1 for _ in self.points)][: self.num_targets]
        offsets = torch.tensor(sizes, device=targets.device).cumsum(0)
        labels = torch.cat([labels, labels.new_zeros(*labels.shape[:-1], len(self.points))], dim=-1)
        return offsets[first[..., 0]] + labels.gather(-1, first)[..., 0]

    def fault(self, targets: Tensor, num_examples: int) -> str | None:
        """Targets must be of the type and shape above; the first task's are all there, or one of each example's."""
        shape = (num_examples, sum(self.columns))
        dtype = torch.float32 if self.points else torch.int64
        words = f"{shape}, one per example and task" + (", two more per point" if self.points else "")
        wrong = type_fault(targets, dtype, tuple(targets.shape) == shape, words)
        if wrong:
            return wrong
        if len(bad := (~targets.isfinite()).any(1).nonzero()):
            return f", row {int(bad[0])}: a target is not finite; remove the row, or put {PADDING} for what is missing."
        for place, (name, names) in enumerate(self.class_names.items()):
            labels = targets[:, place]
            if len(bad := (labels != labels.round()).nonzero()):
                return f", task {name}, row {int(bad[0])}: label {float(labels[bad[0, 0]])} is no whole number."
            if wrong := label_fault(labels, len(names), padding=place > 0 or self.apart):
                return f", task {name}{wrong}"
        if self.apart and bool((empty := ~self.known(targets).any(1)).any()):
            return f", row {int(empty.nonzero()[0])}: it has a label of no task; leave it out."
        return None


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each row of numbers, ``(B,)``; 0 where they are missing."""
    known = (targets != PADDING)[..., :1]
    return torch.where(known, outputs - targets, 0.0).square().mean(-1)


def _count(targets: Tensor) -> Tensor:
    return (targets[..., 0] != PADDING).sum().clamp(min=1)


def _distances(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how far each point is off, ``(B, P)``, in units of the distance between the first two true ones."""
    found, true = (values.reshape(*values.shape[:-1], 2, -1) for values in (outputs, targets))
    unit = (true[..., 0] - true[..., 1]).norm(dim=-1, keepdim=True)
    distances: Tensor = torch.linalg.vector_norm(found - true, dim=-2) / unit.clamp_min(1e-6)
    return distances
