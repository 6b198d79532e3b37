"""Metrics of torchmetrics on the outputs of a whole test split, computed once an evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.task.base import Task

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


class Metrics:
    """A ``MetricCollection`` for every target of a task; nothing is kept between evaluations.

    Updated once on all outputs, on the CPU: its meters cost nothing per batch, and every device gives the same numbers.

    Args:
        make: Builds the metrics of a target by name, from the width of its predictions.
        task: Says what the targets are.
        outputs: Of a few test examples, whatever model gave them; the metrics are tried on them.
        targets: Of the same examples.

    Raises:
        ConfigurationError: If a metric does not fit the task.
    """

    def __init__(
        self, make: Callable[[int], Mapping[str, Metric]], task: Task, outputs: Tensor, targets: Tensor
    ) -> None:
        from torchmetrics import MetricCollection  # here: only for those who ask for more than the task's own scores

        self._task = task
        outputs = outputs.nan_to_num()
        self._collections: dict[str, MetricCollection] = {
            target: MetricCollection(dict(make(predicted.shape[-1] if predicted.ndim > 1 else 1)))
            for target, (predicted, _) in task.predictions(outputs, targets).items()
        }
        self.names = tuple(self(outputs, targets))

    @torch.no_grad()
    def __call__(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return each metric by name, ``<metric>/<target>`` where there are several; NaN if outputs are not finite.

        Args:
            outputs: Of the whole split, ``(examples, num_outputs)``.
            targets: ``(examples,)`` or ``(examples, parts)``.

        Raises:
            ConfigurationError: If a metric cannot be computed, or is more than a number or a number per class.
        """
        if not bool(outputs.isfinite().all()):  # torchmetrics would refuse them, or take them for the last class
            return dict.fromkeys(self.names, math.nan)
        values: dict[str, float] = {}
        for target, (predicted, truth) in self._task.predictions(outputs, targets).items():
            computed = _compute(self._collections[target], predicted.cpu(), truth.cpu())
            ending = f"/{target}" if target else ""
            for name, value in computed.items():
                if value.numel() == 1:
                    values[name + ending] = float(value)
                else:
                    values |= {f"{name}{ending}/{place}": number for place, number in enumerate(value.tolist())}
        return values


def _compute(collection: Any, predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without test examples, at every evaluation
            collection.update(predicted, truth)
            computed = {name: torch.as_tensor(value) for name, value in collection.compute().items()}
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"metric: {', '.join(collection)} cannot be computed on this data set's targets: "
            f"{str(error).strip().splitlines()[0]}; choose others, or metric=accuracy"
        ) from error
    finally:
        collection.reset()
    wide = [name for name, value in computed.items() if value.numel() != 1 and value.ndim != 1]
    if wide:
        raise ConfigurationError(
            f"metric.{wide[0]} gives a table of shape {tuple(computed[wide[0]].shape)}; a metric is a number, or a "
            "number per class"
        )
    return computed
