"""Accuracy of the global model on test inputs that are changed to its harm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgh.core.attack import pgd
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState
from fedgh.dataset.base import ImageDataset, input_range
from fedgh.federation.loop import Schedule
from fedgh.federation.round import Federation, Round
from fedgh.tracking.row import Row


@dataclass(frozen=True)
class Robust:
    """Attack the test split as :class:`~fedgh.algorithm.fal.FAL` attacks batches, and record what is left.

    Adds ``global/test/robust_<score>``, the mean of the task's main score under attack, in evaluation mode: of global
    model 0, whatever the algorithm.

    Args:
        every: Rounds between two measurements, each of which costs ``attack_steps + 1`` passes over the test split.
        epsilon: Largest change of a pixel, as a part of its range.
        step_size: Change of a pixel in a step.
        attack_steps: Steps of the attack.
        batch_size: Test images at a time.
    """

    every: int
    epsilon: float
    step_size: float
    attack_steps: int
    batch_size: int

    def prepare(self, federation: Federation, schedule: Schedule, server: ServerState) -> None:  # noqa: ARG002
        """Refuse data without pixels."""
        if not isinstance(federation.dataset, ImageDataset):
            raise ConfigurationError("callback=robust changes pixels; take a data set of images, or callback=default")

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:  # noqa: ARG002
        """Measure every so many rounds."""
        if row.round % self.every:
            return
        task = federation.dataset.task
        row.metrics[f"global/test/robust_{task.main}"] = self.score(federation, outcome.server)

    def score(self, federation: Federation, server: ServerState) -> float:
        """Return the main score under attack."""
        dataset, model = federation.dataset, federation.model
        low, high = input_range(dataset)
        ball = low, high, self.epsilon * (high - low), self.step_size * (high - low)
        params, buffers = server.params, model.unflatten_buffers(server.buffers)
        inputs, targets = (
            torch.split(t, self.batch_size) for t in (dataset.normalized_test_inputs, dataset.test_targets)
        )
        total = 0.0
        with model.evaluation_mode():
            for some, wanted in zip(inputs, targets, strict=True):

                def harm(attacked: Tensor, wanted: Tensor = wanted) -> Tensor:
                    return dataset.task.loss(model.functional_forward(params, attacked, buffers)[0], wanted)

                with torch.no_grad():
                    attacked = pgd(harm, some, ball, self.attack_steps)
                    outputs, _ = model.functional_forward(params, attacked, buffers)
                total += float(next(iter(dataset.task.scores(outputs, wanted).values())).sum())
        return total / len(dataset.test_targets)
