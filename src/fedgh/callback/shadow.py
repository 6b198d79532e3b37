"""Shadow aggregators: what other rules would have made of the same updates."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedgh.aggregator.base import Aggregator
from fedgh.callback.requirements import require_one_model
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.flat import FlatModel
from fedgh.core.types import Cohort, ServerState
from fedgh.federation.evaluation import evaluate
from fedgh.federation.loop import Schedule
from fedgh.federation.round import Federation, Round, server_step
from fedgh.recording.family import geometry
from fedgh.tracking.recorder import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shadow:
    """Aggregates a round's updates under other rules and evaluates the models that would have come of it.

    One round ahead: a shadow's model starts from the run's own model before the round and takes the run's server step,
    optimizer state and buffer policy included; it is then forgotten. So a difference to ``global/test/*`` is the effect
    of one round's aggregation. The run itself stays the same to the bit.

    A rule that remembers (``stateful``) sees every round, so that its memory is of all updates; that memory belongs to
    the shadow, and goes through the run's checkpoint. A rule that fails is reported once and tried again in the next
    round; the run goes on.

    Args:
        aggregators: Rules by name.
        every: Rounds between two evaluations of the shadows; the first is in round ``every``.
        batch_size: Test images per forward pass.
    """

    aggregators: Mapping[str, Aggregator]
    every: int
    batch_size: int
    _states: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _failed: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigurationError(f"shadow.every must be 1 or more rounds, got {self.every}")

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:
        """Add ``shadow/<rule>/acc``, ``loss``, ``angle`` (degrees) and ``norm_ratio`` (to the mean) when it is time."""
        if outcome.aggregate is None:
            return
        due = row.round % self.every == 0
        for name, rule in self.aggregators.items():
            if not (due or rule.stateful):
                continue
            try:
                metrics = self._try(name, rule, federation, before, outcome, due)
            except Exception as error:  # a shadow must not cost the run
                if name not in self._failed:
                    log.warning(
                        "shadow %s failed in round %d (%s: %s); the run goes on, its further failures are not reported",
                        *(name, row.round, type(error).__name__, error),
                    )
                self._failed.add(name)
            else:
                row.metrics |= {f"shadow/{name}/{key}": value for key, value in metrics.items()}

    def prepare(self, federation: Federation, schedule: Schedule, server: ServerState) -> None:  # noqa: ARG002
        """Refuse a run of several global models."""
        require_one_model(server, "shadow")

    def memory(self) -> dict[str, Any]:
        """Return what the rules remember, by rule; see :class:`fedgh.federation.loop.Remembering`."""
        return {name: state for name, state in self._states.items() if state}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on with it in a resumed run."""
        self._states.update(memory)

    def _try(
        self, name: str, rule: Aggregator, federation: Federation, before: ServerState, outcome: Round, due: bool
    ) -> dict[str, float]:
        if rule.stateful and before.round_index > 0 and name not in self._states:
            log.warning("shadow %s starts with an empty memory in round %d", name, before.round_index + 1)
        result = outcome.result
        cohort = Cohort(
            *(result.client_ids, outcome.weights, result.train_loss, federation.seed, before.round_index),
            before.params,
        )
        aggregate = rule(result.updates, outcome.gram, cohort, self._states.get(name, {}))
        self._states[name] = aggregate.state
        if not due:
            return {}
        if not bool(aggregate.update.isfinite().all()):
            raise TrainingError("its update is not finite")
        would_be = before.with_model(
            0, server_step(federation, before.models[0], result, aggregate, before.round_index)
        )
        with kept(federation.model):
            evaluation = evaluate(federation.model, would_be, federation.dataset, self.batch_size)
        where = geometry(result.updates, outcome.gram, outcome.weights, aggregate)
        metrics = {
            evaluation.main: evaluation.value,
            "loss": evaluation.loss,
            **{k: where[k] for k in ("angle", "norm_ratio")},
        }
        return {key: value for key, value in metrics.items() if not math.isnan(value)}


@contextmanager
def kept(model: FlatModel) -> Iterator[None]:
    """Give the shared model back as it was."""
    content = [tensor.detach().clone() for tensor in (model.params, model.buffers, model.counters)]
    training = model.module.training
    try:
        yield
    finally:
        model.load(*content)
        model.module.train(training)
