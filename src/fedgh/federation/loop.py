"""The loop over rounds: run, describe, record, checkpoint; stop when asked to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from fedgh.core.types import ServerState
from fedgh.federation.evaluation import evaluate
from fedgh.federation.parts import drawn_per_round
from fedgh.federation.personal import fine_tuned_metrics, personal_metrics, trained_metrics
from fedgh.federation.round import Federation, Round, run_round
from fedgh.federation.stopping import StopRequest
from fedgh.metric.conflict import (
    conflict_metrics,
    coordinate_metrics,
    harmonization_metrics,
    matching_gram,
    pairwise_cosines,
)
from fedgh.tracking.recorder import Recorder, Row

log = logging.getLogger(__name__)


class Callback(Protocol):
    """Called after every round with everything that round made; may add to its row, and changes nothing else."""

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:
        """Look at a round.

        Args:
            federation: The parts.
            before: The server state that the clients started from.
            outcome: What happened.
            row: What will be recorded; add metrics, histograms and figures here.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A callback that looks at the run before its first round, and may refuse it."""

    def prepare(self, federation: Federation, schedule: Schedule, server: ServerState) -> None:
        """Raise a FedGHError if the run cannot be served; log what it is going to cost."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A callback that remembers something from round to round; it goes into the checkpoint and comes back from it."""

    def memory(self) -> dict[str, Any]:
        """Return what it remembers, of tensors and plain values."""
        ...

    def recall(self, memory: dict[str, Any]) -> None:
        """Remember again what :meth:`memory` returned in the run that is resumed; empty if that had none."""
        ...


def memories(callbacks: Sequence[object]) -> dict[str, dict[str, Any]]:
    """Return what callbacks remember, by the name of their class; the second of a class is ``<name> 2``."""
    return {name: callback.memory() for name, callback in _remembering(callbacks)}


def recall(callbacks: Sequence[object], remembered: Mapping[str, dict[str, Any]]) -> None:
    """Hand callbacks what :func:`memories` returned in the run that is resumed."""
    for name, callback in _remembering(callbacks):
        callback.recall(remembered.get(name, {}))


def _remembering(callbacks: Sequence[object]) -> Iterator[tuple[str, Remembering]]:
    seen = Counter[str]()
    for callback in callbacks:
        if isinstance(callback, Remembering):
            name = type(callback).__name__
            seen[name] += 1
            yield name if seen[name] == 1 else f"{name} {seen[name]}", callback


@runtime_checkable
class Stopping(Protocol):
    """A callback that may end the run early, once a round that it has seen is recorded."""

    def should_stop(self) -> bool:
        """Tell whether the round just recorded is the last one."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When things happen.

    Attributes:
        num_rounds: T.
        evaluate_every: Rounds between two evaluations; the last round is always evaluated.
        evaluate_batch_size: Test images per forward pass.
        checkpoint_every: Rounds between two checkpoints; the last round and an interrupted run are always saved.
        personal_every: Rounds between two evaluations of personal models, of the algorithms that have some.
        personal_clients: How many clients' personal models are evaluated at most; None for all.
        after_training: Whether participants are evaluated after local training, too, before aggregation.
        fine_tune_epochs: Epochs of fine-tuning before a further evaluation; 0 for none, None for what the algorithm is
            published with.
        fine_tune_every: Rounds between two of those; None: after the last round only.
    """

    num_rounds: int
    evaluate_every: int
    evaluate_batch_size: int
    checkpoint_every: int
    personal_every: int = 1
    personal_clients: int | None = None
    after_training: bool = False
    fine_tune_epochs: int | None = None
    fine_tune_every: int | None = None

    def due(self, every: int | None, finished: int) -> bool:
        """Tell whether something done ``every`` so many rounds, or at the end, is due after ``finished`` rounds."""
        return finished == self.num_rounds or (every is not None and finished % every == 0)


def train(
    federation: Federation,
    server: ServerState,
    schedule: Schedule,
    recorder: Recorder,
    save: Callable[[ServerState], Any],
    callbacks: Sequence[Callback] = (),
) -> tuple[ServerState, int]:
    """Run rounds until ``num_rounds`` are finished, a callback ends the run, or somebody asks to stop.

    Returns:
        The last state, which has been saved, and the number of the signal that stopped the run (0 for none).
    """
    saved = server.round_index
    with StopRequest() as stop, _progress(schedule.num_rounds, server.round_index) as bar:
        while server.round_index < schedule.num_rounds and not stop.signal:
            try:
                outcome = run_round(federation, server)
                row = describe(federation, outcome, schedule, server)
                for callback in callbacks:
                    callback(federation, server, outcome, row)
                recorder.record(row)
            except (SystemExit, KeyboardInterrupt):  # Lightning turns an interruption inside a fit into SystemExit
                if not stop.signal:
                    raise
                log.warning("round %d was abandoned", server.round_index + 1)
                break
            server = outcome.server
            del outcome  # so that the next round may use its memory
            if schedule.due(schedule.checkpoint_every, server.round_index):
                save(server)
                saved = server.round_index
            bar.update()
            _show(bar, row)
            if any(callback.should_stop() for callback in callbacks if isinstance(callback, Stopping)):
                break
    if saved != server.round_index:
        save(server)
    return server, stop.signal


def describe(federation: Federation, outcome: Round, schedule: Schedule, before: ServerState | None = None) -> Row:
    """Return a round's row: accuracy, conflict before harmonization, what the aggregator did, cost.

    Args:
        federation: The parts.
        outcome: What happened.
        schedule: What is due.
        before: The state before the round, for the models after local training.
    """
    result, aggregate = outcome.result, outcome.aggregate
    row = Row(outcome.server.round_index)
    row.metrics = {
        "federation/num_clients": float(len(result.client_ids)),
        "federation/num_dropped": float(len(outcome.dropped)),
        "federation/num_examples": float(result.num_examples.sum()),
        "federation/local_steps": float(result.local_steps.sum()),
        "federation/bytes_down": float(result.bytes_down),
        "federation/bytes_up": float(result.bytes_up),
        "time/train_seconds": outcome.seconds["train"],
        "time/aggregate_seconds": outcome.seconds["aggregate"],
    }
    if aggregate is not None:
        row.metrics["client/train/loss"] = float(result.train_loss @ result.num_examples / result.num_examples.sum())
        row.metrics |= conflict_metrics(outcome.gram)
        row.histograms["conflict/cosine"] = pairwise_cosines(outcome.gram).numpy()
        if aggregate.coefficients is None:
            row.metrics |= coordinate_metrics(aggregate.update, result.updates.combine(outcome.weights))
        else:
            gram = matching_gram(outcome.gram, outcome.block_grams, aggregate.coefficients)
            if gram is not None:
                row.metrics |= harmonization_metrics(gram, outcome.weights, aggregate.coefficients, aggregate.mixing)
        if federation.algorithm.overrides("metrics"):
            row.metrics |= federation.algorithm.metrics(outcome.server, result)
    if federation.privacy is not None and federation.privacy.noise_multiplier > 0:
        count = drawn_per_round(federation)
        row.metrics["privacy/epsilon"] = federation.privacy.epsilon(row.round, federation.num_clients, count)
    if schedule.due(schedule.evaluate_every, row.round):
        started = perf_counter()
        row.metrics |= evaluated(federation, outcome.server, schedule)
        if schedule.after_training and before is not None and schedule.due(schedule.personal_every, row.round):
            row.metrics |= trained_metrics(federation, before, outcome, **own_models(federation, schedule))
        row.metrics["time/evaluate_seconds"] = perf_counter() - started
    return row


def evaluated(federation: Federation, server: ServerState, schedule: Schedule) -> dict[str, float]:
    """Return what the models after a round are worth: the global one, each client's share in it, personal ones.

    With several global models every one of them has its numbers, and ``global/test/<score>`` is the mean over clients
    of the model that each would use. What was held out of the training data has the same numbers, ``val`` for ``test``.
    """
    metrics = _evaluated(federation, server, schedule)
    if federation.validation is not None:
        numbers = _evaluated(federation.held_out, server, schedule).items()
        metrics |= {name.replace("/test/", "/val/"): value for name, value in numbers}
    return metrics


def _evaluated(federation: Federation, server: ServerState, schedule: Schedule) -> dict[str, float]:
    own = own_models(federation, schedule)
    parts = federation.dataset, schedule.evaluate_batch_size, federation.metrics
    evaluations = [evaluate(federation.model, model, *parts) for model in server.models]
    score, metrics = evaluations[0].main, evaluations[0].metrics(own["cells"])
    if federation.algorithm.overrides("personal") and schedule.due(schedule.personal_every, server.round_index):
        metrics |= personal_metrics(federation, server, **own)
    if schedule.due(schedule.fine_tune_every, server.round_index):
        metrics |= fine_tuned_metrics(federation, server, **own, epochs=schedule.fine_tune_epochs)
    if server.siblings:
        metrics |= {f"model/{j}/test/{score}": one.value for j, one in enumerate(evaluations)}
        metrics[f"global/test/{score}"] = metrics.get(f"personal/test/{score}_mean", evaluations[0].value)
    return metrics


def own_models(federation: Federation, schedule: Schedule) -> dict[str, Any]:
    """Return how clients' own models are evaluated, whatever the moment; see :mod:`fedgh.federation.personal`."""
    return {
        "cells": federation.cells,
        "batch_size": schedule.evaluate_batch_size,
        "max_clients": schedule.personal_clients,
        "score": federation.dataset.task.main,
    }


def _progress(total: int, initial: int) -> Any:
    return tqdm(total=total, initial=initial, desc="rounds", unit="round", dynamic_ncols=True)


def _show(bar: Any, row: Row) -> None:
    shown = {"acc": ("global/test/acc", "{:.2%}"), "r2": ("global/test/r2", "{:.3f}")}
    shown |= {"conflict": ("conflict/ratio", "{:.0%}")}
    bar.set_postfix({name: form.format(row.metrics[key]) for name, (key, form) in shown.items() if key in row.metrics})
